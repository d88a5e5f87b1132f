"""A few rows of x times a matrix of blocks, by one launch that loads each block once."""

from functools import lru_cache
from math import prod

import mlx.core as mx

from kvcache.gpu.kernel import LEAST_SIZE, Call, Kernel, Launcher, in_device_memory
from models.gguf.tensor_types import TensorType
from models.gpu.blocks import KERNELS, MACROS, Blocks, headers_of

MOST_INPUTS = 8  # rows of x that the kernel takes
_LANES = 32
# Rows of the matrix that a simdgroup takes, and simdgroups of a threadgroup, by rows of x. Sums and
# weights of eight columns must fit into the 128 registers that a thread of Apple7 and 8 has; the
# more rows of x, the more simdgroups share what they bring of them to threadgroup memory.
_SHAPES = {1: (4, 2), 2: (4, 4), 4: (3, 8), 8: (2, 8)}


def product(
    launch: Launcher, blocks: Blocks, x: mx.array, added: mx.array | None = None
) -> mx.array:
    """y = x W^T + added: x [..., columns], up to 8 rows of it, -> [..., rows] in x's dtype."""
    (y,) = launch(product_call(blocks, x.shape, x.dtype, added).of(with_room(blocks, x)))
    return y


def with_room(blocks: Blocks, x: mx.array) -> mx.array:
    """x [..., columns] with zeros for the columns of zeros that unencoded numbers may have."""
    more = blocks.held_columns - blocks.columns
    return mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, more)]) if more else x


def product_call(
    blocks: Blocks, shape: tuple[int, ...], dtype: mx.Dtype, added: mx.array | None
) -> Call:
    """The launch for any x of a shape and dtype, without x (`Call.of`); for `with_room`'s."""
    count = prod(shape[:-1])
    inputs = next(power for power in _SHAPES if power >= count)
    rows, simdgroups = _SHAPES[inputs]
    groups = -(-blocks.rows // (rows * simdgroups))
    threads = _LANES * simdgroups
    return Call(
        kernel=kernel(blocks.type),
        inputs=[
            blocks.words,
            blocks.arguments(count),
            _NOTHING if added is None else in_device_memory(added),
        ],
        constants={
            "INPUTS": inputs,
            "ROWS": rows,
            "SIMDGROUPS": simdgroups,
            "ADDED": added is not None,
            "Y": dtype,
        },
        grid=(threads * groups, 1, 1),
        threadgroup=(threads, 1, 1),
        shapes=[(*shape[:-1], blocks.rows)],
        dtypes=[dtype],
    )


@lru_cache
def kernel(kind: TensorType) -> Kernel:
    """The kernel for blocks of a type."""
    return Kernel.load(
        "product",
        folder=KERNELS,
        inputs=("x", "blocks", "args", "added"),
        outputs=("y",),
        headers=headers_of(kind),
        macros=(*MACROS, ("TYPE", kind.name)),
    )


_NOTHING = mx.zeros(LEAST_SIZE)
