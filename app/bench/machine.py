"""What the device can do at most: bytes read and operations done per second.

Measured, not looked up: every share of bandwidth that `bench` prints is a share
of this. On the CPU by the CPU kernels' reader and numpy's BLAS, on a GPU by MLX.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import mlx.core as mx
import numpy as np

from kvcache.config import on_gpu
from kvcache.errors import NativeUnavailableError
from kvcache.native.library import library

# More than any processor cache holds.
_READ_BYTES = 512 << 20
_SIDE = 1536
ROUNDS = 9


@dataclass(frozen=True, kw_only=True)
class Machine:
    """read_bytes_s: memory read per second; flops: multiply and add count as two."""

    read_bytes_s: float
    flops: float


@cache
def machine() -> Machine:
    """Measure once in a process; some seconds."""
    read, multiply = (_gpu_read(), _gpu_multiply()) if on_gpu() else (_cpu_read(), _cpu_multiply())
    return Machine(
        read_bytes_s=_READ_BYTES / seconds_of(read, ROUNDS),
        flops=2 * _SIDE**3 / seconds_of(multiply, ROUNDS),
    )


def figures() -> dict[str, float]:
    """The same for the environment block: what the rows' shares are shares of."""
    found = machine()
    return {
        "read_gb_s": round(found.read_bytes_s / 1e9, 2),
        "gflops": round(found.flops / 1e9, 1),
    }


def seconds_of(step: Callable[[], object], rounds: int) -> float:
    """The shortest of some rounds, as other programs only ever add to one."""
    return min(times_of(step, rounds))


def times_of(step: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of each round, after one that does not count."""
    step()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return times


def _cpu_read() -> Callable[[], object]:
    data = np.ones(_READ_BYTES, np.uint8)
    try:
        kernels = library()
    except NativeUnavailableError:
        numbers = data.view(np.uint64)
        return numbers.max
    return lambda: kernels.read(data)


def _cpu_multiply() -> Callable[[], object]:
    a = np.ones((_SIDE, _SIDE), np.float32)
    out = np.empty_like(a)
    return lambda: np.matmul(a, a, out=out)


def _gpu_read() -> Callable[[], object]:
    data = mx.ones((_READ_BYTES // 4,), mx.float32)
    return lambda: mx.eval(mx.sum(data))


def _gpu_multiply() -> Callable[[], object]:
    a = mx.ones((_SIDE, _SIDE), mx.float16)
    return lambda: mx.eval(a @ a)
