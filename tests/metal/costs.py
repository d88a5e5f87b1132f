"""`python -m tests.metal.costs` writes what the kernels cost, for `bench roofline`'s times.

Instructions are counted by `ptx.py`, which needs NVRTC, and launches by `launches.py`. A test
holds the file to both.
"""

import json
from dataclasses import dataclass
from math import prod

import mlx.core as mx

from app.bench.figures.gpu_time import FILE, Costs, KernelCosts, LaunchCosts
from app.bench.figures.shapes import Network
from app.bench.sections.roofline import NETWORKS, encoding_bytes
from kvcache import CacheConfig
from kvcache.codecs import codec
from kvcache.codecs.affine import gains_by_metric
from kvcache.gpu.kernel import Call
from kvcache.gpu.shape import TILE, CallShape
from kvcache.gpu.traffic import Held, traffic
from models.gguf.tensor_types import TensorType
from models.gpu.blocks import Blocks
from models.gpu.product import product_call
from tests.metal import launches
from tests.metal.encoding import EncodeCase, encoded
from tests.metal.ptx import executed_by
from tests.metal.recording import Recorder, calls_of
from tests.metal.samples import Case

_BEFORE, _LETTING_GO = 200, 2500  # tokens held: some are encoded; the window lets go
PRODUCTS = (TensorType.Q4_K, TensorType.Q6_K, TensorType.Q8_0)
_ROWS, _COLUMNS = 64, 4096
_FEW, _MANY = 8, 24  # blocks of 64 tokens, or as many tiles of 32


def costs() -> Costs:
    """Count everything."""
    return Costs(
        launches=LaunchCosts(
            token=launches.token(_BEFORE),
            letting_go=launches.token(_LETTING_GO),
            block=launches.block(),
            mlx_lm=launches.mlx_lm_token(_BEFORE),
        ),
        instructions={network.name: _instructions(network) for network in NETWORKS},
        products={kind.name: _product(kind) for kind in PRODUCTS},
    )


def _product(kind: TensorType) -> float:
    """Instructions of threads for each byte of blocks, of which rows are as Llama-2-7B's."""
    blocks = Blocks.empty(kind, rows=_ROWS, columns=_COLUMNS)
    x = mx.zeros((1, _COLUMNS), mx.float16)
    call = product_call(blocks, x.shape, x.dtype, None).of(x)
    return round(TILE * executed_by(call) / blocks.nbytes, 2)


def _instructions(network: Network) -> KernelCosts:
    encoded, begin_encoded = _slope(
        *(_counted(network, blocks=count, hot=0) for count in (_FEW, _MANY))
    )
    unencoded, begin_unencoded = _slope(
        *(_counted(network, blocks=0, hot=TILE * count) for count in (_FEW, _MANY))
    )
    encoding, groups = _encoding(network)
    return KernelCosts(
        encoded=encoded,
        unencoded=unencoded,
        threadgroup=max(begin_encoded, begin_unencoded),
        encoding=encoding,
        encoding_threadgroups=groups,
    )


def _encoding(network: Network) -> tuple[float, int]:
    """Instructions for each byte that encoding one block of one KV head moves, and threadgroups.

    By the model's metric, which on a GPU is made at the first load.
    """
    config, recorder = CacheConfig(), Recorder()
    case = EncodeCase(
        keys=config.keys,
        values=config.values,
        dim=network.head_dim,
        block=config.block,
        held=config.block,
        feedback=gains_by_metric(codec(config.keys)),
        **{"blocks": 1, "batch": 1, "kv_heads": 1},
    )
    encoded(case, recorder)
    (call,) = recorder.calls
    moved = encoding_bytes(network, f"{config.keys}/{config.values}", config.block)
    return round(TILE * executed_by(call) / moved, 2), _threadgroups(call)


def _threadgroups(call: Call) -> int:
    return prod(size // each for size, each in zip(call.grid, call.threadgroup, strict=True))


@dataclass(frozen=True, kw_only=True)
class _Counted:
    """Of one launch: instructions of threads, bytes that they read, and threadgroups."""

    instructions: int
    bytes: int
    threadgroups: int


def _slope(few: _Counted, many: _Counted) -> tuple[float, int]:
    """Instructions for each byte more, and of a threadgroup without any."""
    per_byte = (many.instructions - few.instructions) / (many.bytes - few.bytes)
    rest = few.instructions - per_byte * few.bytes
    return round(per_byte, 2), round(max(0.0, rest) / few.threadgroups)


def _counted(network: Network, *, blocks: int, hot: int) -> _Counted:
    """Of the kernel that reads so many encoded blocks, or hot tokens; one threadgroup has all."""
    config = CacheConfig()
    case = Case(
        keys=config.keys,
        values=config.values,
        group=network.heads // network.kv_heads,
        dim=network.head_dim,
        block=config.block,
        kv_heads=1,
        pinned=0,
        segments=(_MANY,),
        slots=_MANY,
        first_slot=0,
        blocks=blocks,
        ring=TILE * _MANY,
        hot=hot,
        hot_start=0,
        in_tiers=1,
        threadgroups=1,
    )
    call = next(each for each in calls_of(case) if _reads(each, encoded=blocks > 0))
    read = traffic(
        CallShape(batch=1, kv_heads=1, group=case.group, new=1, dim=case.dim),
        Held(pinned=0, hot=hot, blocks=blocks, block=case.block),
        keys=codec(case.keys),
        values=codec(case.values),
    )
    return _Counted(
        instructions=TILE * executed_by(call), bytes=read.cache, threadgroups=_threadgroups(call)
    )


def _reads(call: Call, *, encoded: bool) -> bool:
    """Whether this is the kernel of encoded, or of unencoded tokens."""
    return call.kernel.stem == "cold" if encoded else "hot_keys" in call.kernel.inputs


if __name__ == "__main__":
    FILE.write_text(json.dumps(costs().as_json(), indent=1) + "\n", encoding="utf-8")
