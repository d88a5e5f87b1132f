"""The codec that keeps tokens as they are, in a floating dtype."""

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from kvcache.codecs.base import ArraySpec, Codec, Encoded, Parts
from kvcache.codecs.half import to_half


@dataclass(frozen=True, kw_only=True)
class UnencodedCodec(Codec):
    """Values [M, D] of `dtype`."""

    dtype: mx.Dtype = mx.float16

    @property
    def largest(self) -> float:
        """Of the dtype."""
        return float(mx.finfo(self.dtype).max)

    def shapes(self, tokens: int, dim: int) -> Mapping[str, ArraySpec]:
        """One array."""
        return {"values": ArraySpec((tokens, dim), self.dtype)}

    def decode_rotated(self, encoded: Encoded) -> mx.array:
        """Widen."""
        return encoded.parts["values"].astype(mx.float32)

    def _encode(self, y: mx.array) -> Parts:
        return {"values": to_half(y) if self.dtype == mx.float16 else y.astype(self.dtype)}
