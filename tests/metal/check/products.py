"""Products over a file's blocks, beside MLX's over 4-bit groups: with few rows of x, and many."""

from collections.abc import Iterator
from dataclasses import replace

import mlx.core as mx

from kvcache.gpu.kernel import Launcher
from models.gguf.tensor_types import TensorType
from models.gpu.blocks import Blocks
from models.gpu.matrix import BlockLinear
from tests.metal.check.rows import ProductRow
from tests.metal.check.sizes import Matrix, Sizes

_BITS, _GROUP = 4, 64  # of MLX's: 4.5 bits a weight, as Q4_K has


def run(launch: Launcher, sizes: Sizes, gb_s: float) -> Iterator[ProductRow]:
    """A row for each matrix, number of rows of x and type. gb_s: measured."""
    for matrix in sizes.matrices:
        for tokens in sizes.tokens_of_products:
            theirs = _seconds_of_mlx(sizes, matrix, tokens)
            for kind in sizes.types:
                blocks = _blocks(kind, matrix)
                seconds = _seconds(sizes, BlockLinear(blocks, launch=launch), tokens)
                yield ProductRow(
                    matrix=matrix.name,
                    type=kind.name,
                    tokens=tokens,
                    seconds=seconds,
                    mlx_seconds=theirs,
                    times=theirs / seconds,
                    bytes=blocks.nbytes,
                    share=blocks.nbytes / seconds / 1e9 / gb_s,
                )


def _seconds(sizes: Sizes, product: BlockLinear, tokens: int) -> float:
    """Each takes some of the numbers that the one before gave."""
    x = mx.random.normal((1, tokens, product.columns)).astype(mx.float16)
    return sizes.timer.chained(lambda now: product(now)[..., : product.columns], x)


def _seconds_of_mlx(sizes: Sizes, matrix: Matrix, tokens: int) -> float:
    weight = mx.random.normal((matrix.rows, matrix.columns)).astype(mx.float16)
    groups = mx.quantize(weight, group_size=_GROUP, bits=_BITS)
    x = mx.random.normal((1, tokens, matrix.columns)).astype(mx.float16)
    mx.eval(groups)

    def multiply(now: mx.array) -> mx.array:
        y = mx.quantized_matmul(now, *groups, transpose=True, group_size=_GROUP, bits=_BITS)
        return y[..., : matrix.columns]

    return sizes.timer.chained(multiply, x)


def _blocks(kind: TensorType, matrix: Matrix) -> Blocks:
    """Of any bits: what they say makes no difference to how fast they are read."""
    made = Blocks.empty(kind, rows=matrix.rows, columns=matrix.columns)
    words = mx.random.randint(0, 1 << 31, made.words.shape, mx.uint32)
    mx.eval(words)
    return replace(made, words=words)
