"""Show a GGUF file's metadata, tensors and memory plan."""

import argparse
from typing import TYPE_CHECKING, Any

from app.inert import inert_line
from app.streams import print_json

if TYPE_CHECKING:
    from models.gguf.file import GGUFFile

_LONG_ARRAY = 16
_WINDOWS = (2048, 4096, 8192, 32768)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    parser.add_argument("file", metavar="FILE", help="a GGUF file or a model's name")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Read the header only; no tensor is loaded."""
    from app.console import note
    from models.finding.source import locate
    from models.gguf.file import GGUFFile

    with GGUFFile(locate(args.file)) as file:
        for text in file.notes:
            note(text)
        found = {
            "path": str(file.path),
            "bytes": file.path.stat().st_size,
            "version": file.version,
            "metadata": {key: _shown(value) for key, value in file.metadata.items()},
            "tensors": [
                {
                    "name": info.name,
                    "type": info.type.name,
                    "shape": list(info.shape),
                    "bytes": info.nbytes,
                }
                for info in file.tensors.values()
            ],
            "memory": _memory(file),
        }
    if args.json:
        print_json(found)
    else:
        _print(found)
    return 0


def _memory(file: "GGUFFile") -> dict[str, Any]:
    """Bytes of the weights once loaded, and of an f16 cache at several windows."""
    from kvcache import CacheConfig, resolve
    from models.gguf.repack import stored_bytes
    from models.network.config import NetworkConfig

    shape = NetworkConfig.from_metadata(file.metadata).shape
    plan = resolve(CacheConfig(), shape)
    windows = sorted({shape.context, *(size for size in _WINDOWS if size < shape.context)})
    return {
        "weight_bytes": sum(stored_bytes(info) for info in file.tensors.values()),
        "context": shape.context,
        "kv_bytes_per_token": plan.token_bytes,
        "kv_bytes_by_window": {str(size): size * plan.token_bytes for size in windows},
    }


def _shown(value: object) -> object:
    """Metadata as JSON can hold it; long arrays become their length."""
    import numpy as np

    from models.text.vocabulary import readable

    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, list):
        return value
    if len(value) > _LONG_ARRAY:
        return f"array of {len(value)}, starting {value[:3]}"
    return [readable(item) if isinstance(item, str) else item for item in value]


def _print(found: dict[str, Any]) -> None:
    size = f"{found['bytes'] / 1e6:.1f} MB"
    print(f"{inert_line(found['path'])}  {size}, GGUF version {found['version']}")
    print("\nmetadata")
    for key, value in found["metadata"].items():
        text = inert_line(value)
        print(f"  {inert_line(key):<42} {text if len(text) <= 80 else text[:77] + '...'}")
    print("\ntensors")
    for tensor in found["tensors"]:
        shape = " x ".join(map(str, tensor["shape"]))
        print(f"  {inert_line(tensor['name']):<30} {tensor['type']:<7} {shape}")
    memory = found["memory"]
    print("\nmemory")
    print(f"  weights             {memory['weight_bytes'] / 2**20:9.1f} MiB")
    print(f"  KV cache per token  {memory['kv_bytes_per_token'] / 2**10:9.1f} KiB in f16")
    for window, size in memory["kv_bytes_by_window"].items():
        print(f"  at {window:>7} tokens   {size / 2**20:9.1f} MiB in f16")
