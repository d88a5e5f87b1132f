"""Show a GGUF file's metadata, tensors and memory plan."""

import argparse
from typing import TYPE_CHECKING, Any

from app import cache_flags, options
from app.inert import inert_line
from app.streams import print_json

if TYPE_CHECKING:
    from kvcache import CachePlan
    from models.gguf.file import GGUFFile
    from models.gguf.header import TensorInfo
    from models.network.config import NetworkConfig
    from models.sampling_defaults import SamplingDefaults

_LONG_ARRAY, _MOST_RANKS = 16, 4096
_WINDOWS = (2048, 4096, 8192, 32768)
_SOME_TOKENS = 1000


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    parser.add_argument("file", metavar="FILE", help="a GGUF file or a model's name")
    cache_flags.add_backend(parser)
    parser.add_argument(
        "--ranks",
        type=options.whole(1, _MOST_RANKS),
        metavar="N",
        help="what each of N machines would hold that share it",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Read the header only; no tensor is loaded. What would keep it from loading is a note."""
    from app.console import note
    from models.finding.source import locate
    from models.gguf.file import GGUFFile
    from models.network.config import NetworkConfig
    from models.network.shapes import notes_on, told_by_tensors
    from models.sampling_defaults import SamplingDefaults

    with GGUFFile(locate(args.file)) as file:
        sampling = SamplingDefaults.from_metadata(file.metadata)
        for text in file.notes + notes_on(file.tensors) + sampling.notes:
            note(text)
        config = NetworkConfig.from_metadata(file.metadata)
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
            "switches": [*config.named(), *told_by_tensors(file.tensors)],
            "sampling": _recommended(sampling),
            "memory": _memory(file, config, args.backend),
        }
        if args.ranks is not None:
            found["ranks"] = _ranks(file, config, args)
    if args.json:
        print_json(found)
    else:
        _print(found)
    return 0


def _recommended(sampling: "SamplingDefaults") -> dict[str, dict[str, Any]]:
    """By what a model does: answer as it is used to, or without thinking where that differs."""
    found = {"usual": sampling.usual, "without thinking": sampling.plain}
    if sampling.plain == sampling.usual:
        del found["without thinking"]
    return {
        name: {key: round(value, 6) for key, value in each.values.items()} | {"source": each.source}
        for name, each in found.items()
    }


def _memory(file: "GGUFFile", config: "NetworkConfig", backend: str) -> dict[str, Any]:
    """Bytes of the weights once loaded, of an f16 cache at several windows, and of ours."""
    from app.kernels import only_reference
    from kvcache import Backend, CacheConfig, resolve

    shape, decoded = config.shape, only_reference(Backend(backend))
    # The bytes of a cache are the same for all backends; this one has nothing to be compiled.
    plan = resolve(CacheConfig(backend=Backend.REFERENCE), shape)
    windows = sorted({shape.context, *(size for size in _WINDOWS if size < shape.context)})
    return {
        "weight_bytes": _weight_bytes(file, config, decoded=decoded),
        "weights_as": "floats" if decoded else "in the file",
        "context": shape.context,
        "kv_bytes_per_token": plan.token_bytes,
        "kv_bytes_by_window": {str(size): _f16_bytes(plan, size) for size in windows},
        "kv_bytes": plan.max_bytes,
        "kv_layers": [
            {
                "layers": layers,
                "window": sizes.window,
                "tokens": sizes.max_tokens,
                "bytes": plan.bytes_of_kind(sizes),
            }
            for sizes, layers in plan.kinds.items()
        ],
    }


def _ranks(
    file: "GGUFFile", config: "NetworkConfig", args: argparse.Namespace
) -> list[dict[str, int]]:
    """What each rank holds. Raises UnevenError where so many cannot share it."""
    from app.kernels import only_reference
    from kvcache import Backend, CacheConfig, resolve
    from models.network.shapes import tensors_to_read
    from models.network.share import Share

    entries, decoded = tensors_to_read(file, config), only_reference(Backend(args.backend))
    found = []
    for rank in range(args.ranks):
        share = Share.of(config, entries, rank=rank, size=args.ranks)
        own = share.config
        plan = resolve(CacheConfig(backend=Backend.REFERENCE), own.shape)
        weights = share.entries(entries).values()
        found.append(
            {
                "rank": rank,
                "weight_bytes": sum(_held_bytes(info, decoded=decoded) for info in weights),
                "kv_bytes_per_1000_tokens": plan.bytes_of(_SOME_TOKENS),
                "heads": own.heads,
                "kv_heads": own.kv_heads,
                "ffn": own.ffn,
            }
        )
    return found


def _weight_bytes(file: "GGUFFile", config: "NetworkConfig", *, decoded: bool) -> int:
    """As in the file or decoded, of all tensors where the file cannot be run, which a note says."""
    from app.console import note
    from models.errors import GGUFError
    from models.network.shapes import tensors_to_read

    entries = file.tensors
    try:
        entries = tensors_to_read(file, config)
    except GGUFError as error:
        note(f"it cannot be run: {error}")
    return sum(_held_bytes(info, decoded=decoded) for info in entries.values())


def _held_bytes(info: "TensorInfo", *, decoded: bool) -> int:
    from models.loader import decoded_bytes

    return decoded_bytes(info.shape) if decoded else info.nbytes


def _f16_bytes(plan: "CachePlan", tokens: int) -> int:
    """Keys and values of so many tokens in f16: no more in a layer than its window shows."""
    held = sum(n * min(tokens, window or tokens) for window, n in plan.shape.sights.items())
    return plan.token_bytes * held // plan.shape.layers


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
    print("\nwhat differs from Llama")
    for switch in found["switches"] or ["nothing"]:
        print(f"  {inert_line(switch)}")
    print("\ntensors")
    for tensor in found["tensors"]:
        shape = " x ".join(map(str, tensor["shape"]))
        print(f"  {inert_line(tensor['name']):<30} {tensor['type']:<7} {shape}")
    print("\nsampling in the chat")
    for name, each in found["sampling"].items():
        values = ", ".join(f"{key} {value:g}" for key, value in each.items() if key != "source")
        print(f"  {name:<19} {values}\n  {'':<19} by {inert_line(each['source'])}")
    memory = found["memory"]
    held = "as floats" if memory["weights_as"] == "floats" else "as in the file"
    print("\nmemory")
    print(f"  weights             {memory['weight_bytes'] / 2**20:9.1f} MiB, {held}")
    print(f"  KV cache per token  {memory['kv_bytes_per_token'] / 2**10:9.1f} KiB in f16")
    for window, size in memory["kv_bytes_by_window"].items():
        print(f"  at {window:>7} tokens   {size / 2**20:9.1f} MiB in f16")
    for kind in memory["kv_layers"]:
        seen = "all tokens" if kind["window"] is None else f"{kind['window']} tokens"
        shown = f"{kind['layers']} layers that see {seen}, {kind['tokens']} held"
        print(f"  as ember holds them {kind['bytes'] / 2**20:9.1f} MiB in {shown}")
    for rank in found.get("ranks", ()):
        weights, cache = rank["weight_bytes"] / 2**20, rank["kv_bytes_per_1000_tokens"] / 2**20
        print(
            f"  rank {rank['rank']:<14} {weights:9.1f} MiB of weights, {cache:.1f} MiB of cache "
            f"with 1,000 tokens: {rank['heads']} heads, {rank['kv_heads']} of keys and values"
        )
