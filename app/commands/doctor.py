"""Show what this machine has and what ember will use."""

import argparse
from typing import TYPE_CHECKING, Any

from app.inert import inert_line
from app.streams import print_json

if TYPE_CHECKING:
    from kvcache.native.library import Library

# More than any cache holds.
_BANDWIDTH_BYTES = 512 << 20
_WAYS = ("ring", "jaccl", "mpi", "nccl")  # of `mlx.launch --backend`
_HEAD_DIM = 128  # of most models


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the findings, one a line."""
    findings = _findings()
    if args.json:
        print_json(findings)
        return 0
    width = max(len(name) for name in findings)
    for name, value in findings.items():
        print(f"{name.replace('_', ' '):<{width}}  {inert_line(value)}")
    return 0


def _findings() -> dict[str, Any]:
    import os
    import platform
    from importlib.metadata import version

    import mlx.core as mx

    from app import __version__
    from app.kernels import compiling, wanted
    from app.wake.folder import PieceFolder, default_folder
    from kvcache import Backend
    from models.finding.store import models_folder
    from models.loader import activation_dtype

    with compiling(wanted(Backend.AUTO)):
        kept = PieceFolder(default_folder())
    return {
        "ember": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "mlx": version("mlx"),
        "mlx_lm": version("mlx-lm"),
        "device": _device(mx),
        "backend": Backend.AUTO.resolve().value,
        "ranks": f"by {_between_machines(mx)}; `inspect MODEL --ranks N` says what each holds",
        "activations": str(activation_dtype()).removeprefix("mlx.core."),
        **_gpu_kernels(),
        **_kernels(),
        "models_folder": str(models_folder()),
        "kept_chats": str(kept.path),
        "kept_bytes": kept.nbytes,
    }


def _gpu_kernels() -> dict[str, Any]:
    """What the GPU kernels do not read, where there is a GPU."""
    from kvcache.codecs import NAMES, codec
    from kvcache.config import on_gpu
    from kvcache.gpu.families import why_unread

    if not on_gpu():
        return {}
    unread = [name for name in NAMES if why_unread((codec(name),), _HEAD_DIM)]
    return {"gpu_kernels": f"all codecs but {', '.join(unread)}, which run in plain MLX"}


def _kernels() -> dict[str, Any]:
    """The CPU kernels of the cache and of the network, or why there are none."""
    from kvcache.errors import NativeUnavailableError
    from kvcache.native.compilers import find_compiler
    from kvcache.native.library import library

    try:
        kernels = library()
    except NativeUnavailableError as error:
        return {"cpu_kernels": f"none: {error}"}
    return {
        "compiler": find_compiler(),
        "cpu_kernels": kernels.instructions,
        "cpu_network": _network(),
        "cpu_threads": kernels.threads,
        "read_gb_per_s": round(_bandwidth(kernels), 1),
    }


def _network() -> str:
    from kvcache.errors import NativeUnavailableError
    from models.native.kernels import kernels

    try:
        kernels()
    except NativeUnavailableError as error:
        return f"plain MLX, slowly: {error}"
    return "compiled too"


def _bandwidth(kernels: "Library") -> float:
    """Gigabytes per second that all threads read together, measured as `bench` does."""
    import numpy as np

    from app.bench.machine import ROUNDS, seconds_of

    data = np.ones(_BANDWIDTH_BYTES, np.uint8)
    return data.size / seconds_of(lambda: kernels.read(data), ROUNDS) / 1e9


def _between_machines(mx: Any) -> str:
    """What of MLX's ways between machines is here."""
    ways = [way for way in _WAYS if mx.distributed.is_available(way)]
    return ", ".join(ways) or "nothing: this MLX knows no other machine"


def _device(mx: Any) -> str:
    from kvcache.config import on_gpu

    if not on_gpu():
        return "CPU"
    info = mx.device_info()
    kind = "Metal" if mx.metal.is_available() else "CUDA"
    return f"{kind}, {info.get('device_name', 'unnamed')}"
