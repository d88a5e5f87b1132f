"""Compiles the decode kernels of a model and its codecs before the first token needs them."""

import mlx.core as mx

from kvcache.codecs.base import Codec, Parts
from kvcache.gpu.decode import TierDecoder
from kvcache.gpu.shape import CallShape
from kvcache.gpu.tiers import ColdBlocks, DenseTokens, TierArrays


def warm_up(
    decoder: TierDecoder,
    shape: CallShape,
    *,
    keys: Codec,
    values: Codec,
    block: int,
    dtype: mx.Dtype,
) -> None:
    """Attend to a block of zeros. Any lengths may follow; another L or G is another kernel.

    dtype: of queries and of unencoded tokens. Raises CacheError for codecs that
    no kernel reads.
    """
    size = shape.batch, shape.kv_heads
    new = mx.zeros((*size, shape.new, shape.dim), dtype)
    pair = _zeros(keys, shape, block), _zeros(values, shape, block)
    cold = ColdBlocks(
        key_codec=keys,
        value_codec=values,
        segments=[pair],
        first_slot=0,
        blocks=1,
        block=block,
        dim=shape.dim,
        slots=1,
        position=0,
    )
    q = mx.zeros((shape.batch, shape.kv_heads * shape.group, shape.new, shape.dim), dtype)
    tiers = TierArrays(new=DenseTokens(keys=new, values=new, count=shape.new), cold=cold)
    lowest = mx.zeros(shape.new, mx.int32)
    mx.eval(decoder.attend(q, q, tiers, lowest=lowest, position=block, scale=1.0))


def _zeros(codec: Codec, shape: CallShape, block: int) -> Parts:
    """A segment of one slot."""
    return {
        name: mx.zeros((1, shape.batch, shape.kv_heads, *spec.shape), spec.dtype)
        for name, spec in codec.shapes(block, shape.dim).items()
    }
