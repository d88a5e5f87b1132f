"""Scales, zero points and norms in float16, the way every codec stores them."""

import mlx.core as mx

from kvcache.codecs.base import ArraySpec

_LARGEST = 65504.0


def to_half(x: mx.array) -> mx.array:
    """x in float16; what is too large for it becomes its largest number, not infinity."""
    return mx.clip(x, -_LARGEST, _LARGEST).astype(mx.float16)


def nonzero(scale: mx.array) -> mx.array:
    """A scale in float32, safe to divide by: 1 where it is 0 and only zeros are coded."""
    wide = scale.astype(mx.float32)
    return mx.where(wide == 0, 1.0, wide)


def half_spec(*shape: int) -> ArraySpec:
    """An array of float16."""
    return ArraySpec(shape, mx.float16)
