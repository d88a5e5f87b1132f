"""Runs the kernels on a real GPU: every case of the emulator's tests, then their speed.

`make metal-check` prints one table to paste into a report. It exits with 1 if a
case is wrong.
"""

import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from math import sqrt

import mlx.core as mx
import numpy as np

from kvcache.codecs import codec
from kvcache.codecs.base import Parts
from kvcache.gpu import TierDecoder, TierPrefill
from kvcache.sight import Sight
from kvcache.snapshot import Snapshot, Tokens
from tests.metal.cases import ALL
from tests.metal.samples import Case, make, tolerance
from tests.metal.test_prefill import CASES as PREFILL

_REPEATS = 20
_BLOCK = 64
_DEPTHS = (4096, 16384, 32768)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of one layer's attention."""

    name: str
    kv_heads: int
    group: int
    dim: int


_SHAPES = (
    Shape(name="TinyLlama", kv_heads=4, group=8, dim=64),
    Shape(name="Llama-2-7B", kv_heads=32, group=1, dim=128),
)


def check_cases() -> Iterator[str]:
    """A line for each case; what is wrong has FAIL in it."""
    for name, case in ALL.items():
        yield _line(name, case, _decode)
    for name, case in PREFILL.items():
        yield _line(f"prefill: {name}", case, _prefill)


def _line(name: str, case: Case, attend: Callable[[Case], mx.array]) -> str:
    error = float(np.abs(np.array(attend(case).astype(mx.float32)) - make(case).expected).max())
    verdict = "ok" if error <= tolerance(case) else "FAIL"
    return f"{name:<44} {error:9.1e} {tolerance(case):9.0e} {verdict}"


def _decode(case: Case) -> mx.array:
    sample = make(case)
    return TierDecoder(threadgroups=case.threadgroups).attend(
        sample.q, sample.held, sample.sight, scale=sample.scale
    )


def _prefill(case: Case) -> mx.array:
    sample = make(case)
    return TierPrefill().attend(sample.q, sample.held, sample.sight, scale=sample.scale)


def measure() -> Iterator[str]:
    """Milliseconds of one layer's attention of one token, ours and MLX's on float16."""
    for shape in _SHAPES:
        for depth in _DEPTHS:
            ours, encoded = _our_seconds(shape, depth)
            fused = _fused_seconds(shape, depth)
            yield (
                f"{shape.name:<12} {depth:>6} {fused * 1e3:8.3f} {ours * 1e3:8.3f} "
                f"{fused / ours:6.2f} {encoded / ours / 1e9:8.1f}"
            )


def _our_seconds(shape: Shape, depth: int) -> tuple[float, int]:
    """Of `depth` cold tokens in the default codecs, and their bytes."""
    keys, values = codec("hkivi5"), codec("turbo3u")
    blocks = depth // _BLOCK
    size = (1, shape.kv_heads, _BLOCK, shape.dim)
    pair: list[Parts] = []
    for each in (keys, values):
        one = each.encode(mx.random.normal(size)).parts
        pair.append({name: mx.repeat(part[None], blocks, axis=0) for name, part in one.items()})
    new = mx.random.normal((1, shape.kv_heads, 1, shape.dim)).astype(mx.float16)
    held = Snapshot(
        codecs=(keys, values),
        segments=[(pair[0], pair[1])],
        slots=[blocks],
        blocks=blocks,
        block=_BLOCK,
        dim=shape.dim,
        new=Tokens(new, new),
    )
    q = _query(shape)
    sight = Sight(position=depth, gone=(0,), total=depth, new=1)
    decoder = TierDecoder()
    seconds = _seconds(
        lambda: decoder.attend(q, held, sight, scale=1 / sqrt(shape.dim)),
        [part for parts in pair for part in parts.values()],
    )
    return seconds, sum(part.nbytes for parts in pair for part in parts.values())


def _fused_seconds(shape: Shape, depth: int) -> float:
    keys, values = (
        mx.random.normal((1, shape.kv_heads, depth, shape.dim)).astype(mx.float16) for _ in "kv"
    )
    q, scale = _query(shape), 1 / sqrt(shape.dim)
    return _seconds(
        lambda: mx.fast.scaled_dot_product_attention(q, keys, values, scale=scale), [keys, values]
    )


def _query(shape: Shape) -> mx.array:
    heads = shape.kv_heads * shape.group
    return mx.random.normal((1, heads, 1, shape.dim)).astype(mx.float16)


def _seconds(attend: Callable[[], mx.array], inputs: list[mx.array]) -> float:
    """The median of several calls, each of them waited for."""
    mx.eval(inputs)
    taken = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        mx.eval(attend())
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def main() -> int:
    """Print the table."""
    if mx.default_device().type != mx.DeviceType.gpu:
        print(
            "MLX sees no GPU here: run this on a Mac, or on Linux with mlx[cuda]", file=sys.stderr
        )
        return 1
    name = mx.device_info().get("device_name", "unknown GPU")
    print(f"{name}, MLX {version('mlx')}, {platform.platform()}")
    print(f"\n{'case':<44} {'error':>9} {'at most':>9}")
    wrong = 0
    for line in check_cases():
        wrong += line.endswith("FAIL")
        print(line, flush=True)
    print(f"\n{len(ALL) + len(PREFILL)} cases, {wrong} wrong")
    print(
        f"\n{'one layer':<12} {'tokens':>6} {'f16 ms':>8} {'ours ms':>8} {'ratio':>6} {'GB/s':>8}"
    )
    for line in measure():
        print(line, flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
