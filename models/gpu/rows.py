"""Rows of a matrix of blocks as numbers: an embedding's by their ids, or a tile before a matmul."""

from functools import lru_cache

import mlx.core as mx

from kvcache.gpu.arguments import float_bits
from kvcache.gpu.kernel import Call, Kernel, Launcher
from models.gguf.tensor_types import TensorType
from models.gpu.blocks import KERNELS, MACROS, Blocks, headers_of

_SIMDGROUPS = 4  # of a threadgroup
_LANES = 32
_STEP = 1024  # columns that a simdgroup decodes, or more: then there are simdgroups without any
_NUMBERS = {
    TensorType.F32: mx.float32,
    TensorType.F16: mx.float16,
    TensorType.BF16: mx.bfloat16,
}


def look_up(
    launch: Launcher, blocks: Blocks, ids: mx.array, dtype: mx.Dtype, *, factor: float = 1.0
) -> mx.array:
    """Rows `ids` [...] times `factor`, as [..., columns] of `dtype`; see `RowsById`."""
    return RowsById(launch, blocks, dtype)(ids, factor)


class RowsById:
    """Rows of one matrix by their ids, times a factor: one launch where they are blocks.

    An id of no row is taken for the nearest that there is.
    """

    def __init__(self, launch: Launcher, blocks: Blocks, dtype: mx.Dtype) -> None:
        self._launch, self._blocks, self._dtype = launch, blocks, dtype
        # The launch for each number of ids and each factor.
        self._calls: dict[tuple[int, float], Call] = {}

    def __call__(self, ids: mx.array, factor: float) -> mx.array:
        """ids [...] -> [..., columns] of the dtype."""
        blocks = self._blocks
        if ids.dtype not in (mx.int32, mx.uint32):
            ids = ids.astype(mx.int32)
        ids = ids.view(mx.int32)
        if blocks.type in _NUMBERS:
            inside = mx.clip(ids, 0, blocks.rows - 1)
            found = _unencoded(blocks)[inside]
            # In float32, as the kernel does: rounded once, the factor not at all.
            scaled = found if factor == 1 else found.astype(mx.float32) * factor
            return scaled.astype(self._dtype)
        key = ids.size, factor
        call = self._calls.get(key)
        if call is None:
            call = _call(blocks, ids.size, self._dtype, factor=factor, by_id=True)
            self._calls[key] = call
        (out,) = self._launch(call.of(ids.flatten()))
        return out.reshape(*ids.shape, blocks.columns)


def decoded(launch: Launcher, blocks: Blocks, dtype: mx.Dtype) -> mx.array:
    """All rows, [rows, columns] of `dtype`."""
    if blocks.type in _NUMBERS:
        return _unencoded(blocks).astype(dtype)
    call = _call(blocks, blocks.rows, dtype, factor=1.0, by_id=False)
    (out,) = launch(call.of(call.inputs[-1]))  # instead of ids, which it does not read
    return out


def _unencoded(blocks: Blocks) -> mx.array:
    """Numbers as they are held, [rows, columns], a view."""
    numbers = blocks.words.view(_NUMBERS[blocks.type]).reshape(blocks.all_rows, -1)
    return numbers[blocks.row : blocks.row + blocks.rows, : blocks.columns]


def _call(blocks: Blocks, count: int, dtype: mx.Dtype, *, factor: float, by_id: bool) -> Call:
    """The launch, without ids (`Call.of`)."""
    tasks = count * -(-blocks.columns // _STEP)
    threads = _LANES * _SIMDGROUPS
    return Call(
        kernel=kernel(blocks.type),
        inputs=[blocks.words, blocks.arguments(count, float_bits(factor))],
        constants={"SIMDGROUPS": _SIMDGROUPS, "BY_ID": by_id},
        grid=(threads * -(-tasks // _SIMDGROUPS), 1, 1),
        threadgroup=(threads, 1, 1),
        shapes=[(count, blocks.columns)],
        dtypes=[dtype],
    )


@lru_cache
def kernel(kind: TensorType) -> Kernel:
    """The kernel for blocks of a type."""
    return Kernel.load(
        "rows",
        folder=KERNELS,
        inputs=("ids", "blocks", "args"),
        outputs=("out",),
        headers=(*headers_of(kind), "numbers.h"),
        macros=(*MACROS, ("TYPE", kind.name)),
    )
