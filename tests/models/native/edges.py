"""Every product of weights that lie right before, or right behind, memory that may not be read.

    python -m tests.models.native.edges COMPILER_FLAGS TYPE...

A kernel that reads a byte too many ends this process by a signal; the last line says of what.
"""

import ctypes
import mmap
import sys
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from kvcache.native.library import SOURCES, Library
from models.gguf.tensor_types import TensorType
from models.native.kernels import Kernels
from models.native.packed import Addition, FeedForward, Inputs, Weight
from tests.kvcache.native.conftest import compiled_as
from tests.models.gguf.blocks import random_rows

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

FEW, MANY = (1, 2, 3, 5, 8), (9, 17, 70)
# Columns in blocks of 32, or of the type's own.
BLOCKS = {1: (1, 2, 3, 5), 32: (1, 2, 3, 5), 256: (1, 2, 3)}
WEIGHT_ROWS = (1, 4, 15, 16, 17, 33)


class Fenced:
    """Memory between two pages that may be neither read nor written."""

    def __init__(self, size: int) -> None:
        whole = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(-1, whole + 2 * mmap.PAGESIZE)
        everything = np.frombuffer(self._memory, np.uint8)
        self._bytes = everything[mmap.PAGESIZE : mmap.PAGESIZE + whole]
        libc = ctypes.CDLL(None, use_errno=True)
        where = everything.__array_interface__["data"][0]
        for page in (where, where + mmap.PAGESIZE + whole):
            if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), 0):
                raise OSError(ctypes.get_errno(), "mprotect")

    def placed(self, data: Bytes, gap: int) -> Bytes:
        """A copy that ends `gap` bytes before the fence behind; or -gap behind the other."""
        end = len(self._bytes) - gap if gap >= 0 else ~gap + data.nbytes
        place = self._bytes[end - data.nbytes : end].reshape(data.shape)
        place[...] = data
        return place


def _activations(rows: int, columns: int) -> Floats:
    return np.random.default_rng(rows + columns).standard_normal((rows, columns), np.float32)


def _products(kernels: Kernels, data: Bytes, kind: TensorType) -> Iterator[tuple[str, Floats]]:
    weight = Weight(data, kind=kind)
    for rows in FEW + MANY:
        yield f"product of {rows} rows", kernels.linear(_activations(rows, weight.columns), weight)
    ids = np.array([weight.rows - 1, 0, weight.rows // 2], np.int64)
    yield "embedding", kernels.embed(ids, weight)
    yield "check", np.array([kernels.are_finite(data, kind)], np.float32)


def _together(
    kernels: Kernels, data: list[Bytes], kind: TensorType
) -> Iterator[tuple[str, Floats]]:
    """Several weights in one call, square ones."""
    q, k, v = weights = [Weight(each, kind=kind) for each in data]
    inputs = Inputs(weights, dim=q.columns)
    part = FeedForward(q, k, Addition(v))
    for rows in (1, 8, 9):
        x = _activations(rows, q.columns)
        for name, got in zip(
            "qkv", kernels.attention_inputs(x[None], inputs, starts=(0,)), strict=True
        ):
            yield f"{name} of {rows} rows", got
        yield f"feed-forward of {rows} rows", kernels.feed_forward(x, part)


def _compare(label: str, got: Iterator[tuple[str, Floats]], want: dict[str, Floats]) -> None:
    print(label, end=": ", flush=True)
    for name, result in got:
        print(name, end=", ", flush=True)
        if not np.array_equal(result, want[name]):
            sys.exit(f"{label}, {name}: another result than elsewhere in memory")
    print(flush=True)


def try_alone(kernels: Kernels, kind: TensorType) -> None:
    """A weight of every shape at both fences."""
    for blocks in BLOCKS[kind.block_size]:
        for rows in WEIGHT_ROWS:
            data = random_rows(kind, rows, rows=rows, blocks=blocks)
            want = dict(_products(kernels, data.copy(), kind))
            fenced = Fenced(data.nbytes)
            for gap in (0, -1):
                label = f"{kind.name} {list(data.shape)} bytes, {gap} from a fence"
                _compare(label, _products(kernels, fenced.placed(data, gap), kind), want)


def try_anywhere(kernels: Kernels, kind: TensorType) -> None:
    """A weight at every offset from a vector's alignment."""
    data = random_rows(kind, 7, rows=19, blocks=3)
    want, fenced = dict(_products(kernels, data.copy(), kind)), Fenced(data.nbytes + 64)
    for gap in range(1, 32):
        place = fenced.placed(data, gap)
        _compare(f"{kind.name}, {gap} bytes from the fence", _products(kernels, place, kind), want)


def try_together(kernels: Kernels, kind: TensorType) -> None:
    """Three weights, each at a fence of its own."""
    blocks = {1: 3, 32: 3, 256: 1}[kind.block_size]
    rows = blocks * max(kind.block_size, 32)
    data = [random_rows(kind, seed, rows=rows, blocks=blocks) for seed in range(3)]
    want = dict(_together(kernels, [each.copy() for each in data], kind))
    fences = [Fenced(each.nbytes) for each in data]
    places = [fence.placed(each, 0) for fence, each in zip(fences, data, strict=True)]
    _compare(f"{kind.name}, three together", _together(kernels, places, kind), want)


def main() -> None:
    """Try what the command line says."""
    told, *names = sys.argv[1:]
    kernels = Kernels(Library(2, compiled_as(SOURCES, *told.split())))
    for kind in (TensorType[name] for name in names):
        try_alone(kernels, kind)
        try_anywhere(kernels, kind)
        try_together(kernels, kind)
    print("all well")


if __name__ == "__main__":
    main()
