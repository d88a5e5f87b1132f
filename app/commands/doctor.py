"""Show what this machine has and what ember will use."""

import argparse
import json
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the findings, one a line."""
    findings = _findings()
    if args.json:
        print(json.dumps(findings, ensure_ascii=False))
        return 0
    width = max(len(name) for name in findings)
    for name, value in findings.items():
        print(f"{name.replace('_', ' '):<{width}}  {value}")
    return 0


def _findings() -> dict[str, Any]:
    import os
    import platform
    import shutil
    from importlib.metadata import version

    import mlx.core as mx

    from app import __version__
    from kvcache import Backend
    from models.loader import activation_dtype
    from models.store import models_folder

    compiler = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
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
        "activations": str(activation_dtype()).removeprefix("mlx.core."),
        "compiler": compiler or "none found: MLX compiles some CPU operations with c++",
        "models_folder": str(models_folder()),
    }


def _device(mx: Any) -> str:
    if mx.default_device().type != mx.DeviceType.gpu:
        return "CPU"
    info = mx.device_info()
    kind = "Metal" if mx.metal.is_available() else "CUDA"
    return f"{kind}, {info.get('device_name', 'unnamed')}"
