"""Rows of a matrix of blocks as numbers: an embedding's by their ids, or a tile before a matmul."""

from functools import lru_cache
from pathlib import Path

import mlx.core as mx

from kvcache.gpu.arguments import float_bits
from kvcache.gpu.kernel import Call, Kernel, Launcher
from models.gguf.tensor_types import TensorType
from models.gpu.blocks import MACROS, Blocks

FOLDER = Path(__file__).parent / "kernels"
_SIMDGROUPS = 4  # of a threadgroup
_LANES = 32
_STEP = 1024  # columns that a simdgroup decodes
_NUMBERS = {
    TensorType.F32: mx.float32,
    TensorType.F16: mx.float16,
    TensorType.BF16: mx.bfloat16,
}


def look_up(
    launch: Launcher, blocks: Blocks, ids: mx.array, dtype: mx.Dtype, *, factor: float = 1.0
) -> mx.array:
    """Rows `ids` [...] times `factor`, as [..., columns] of `dtype`: one launch for blocks.

    An id of no row is taken for the nearest that there is.
    """
    if ids.dtype not in (mx.int32, mx.uint32):
        ids = ids.astype(mx.int32)
    if blocks.type in _NUMBERS:
        inside = mx.clip(ids.view(mx.int32), 0, blocks.rows - 1)
        found = _unencoded(blocks)[inside].astype(dtype)
        return found if factor == 1 else found * factor
    found = _launched(launch, blocks, ids.flatten().view(mx.int32), ids.size, dtype, factor)
    return found.reshape(*ids.shape, blocks.columns)


def decoded(launch: Launcher, blocks: Blocks, dtype: mx.Dtype) -> mx.array:
    """All rows, [rows, columns] of `dtype`."""
    if blocks.type in _NUMBERS:
        return _unencoded(blocks).astype(dtype)
    return _launched(launch, blocks, None, blocks.rows, dtype, 1.0)


def _unencoded(blocks: Blocks) -> mx.array:
    """Numbers as they are held, [rows, columns], a view."""
    numbers = blocks.words.view(_NUMBERS[blocks.type]).reshape(blocks.all_rows, -1)
    return numbers[blocks.row : blocks.row + blocks.rows, : blocks.columns]


def _launched(
    launch: Launcher,
    blocks: Blocks,
    ids: mx.array | None,
    count: int,
    dtype: mx.Dtype,
    factor: float,
) -> mx.array:
    arguments = blocks.arguments(count, float_bits(factor))
    tasks = count * -(-blocks.columns // _STEP)
    threads = _LANES * _SIMDGROUPS
    (out,) = launch(
        Call(
            kernel=kernel(blocks.type),
            inputs=[blocks.words, arguments if ids is None else ids, arguments],
            constants={"SIMDGROUPS": _SIMDGROUPS, "BY_ID": ids is not None},
            grid=(threads * -(-tasks // _SIMDGROUPS), 1, 1),
            threadgroup=(threads, 1, 1),
            shapes=[(count, blocks.columns)],
            dtypes=[dtype],
        )
    )
    return out


@lru_cache
def kernel(kind: TensorType) -> Kernel:
    """The kernel for blocks of a type."""
    return Kernel.load(
        "rows",
        folder=FOLDER,
        inputs=("blocks", "ids", "args"),
        outputs=("out",),
        headers=("packing.h", "blocks.h", "numbers.h"),
        macros=(*MACROS, ("TYPE", kind.name)),
    )
