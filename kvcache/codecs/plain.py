"""The codec that keeps float16 as it is."""

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from kvcache.codecs.base import ArraySpec, Codec, Encoded, Parts
from kvcache.codecs.half import half_spec, to_half


@dataclass(frozen=True, kw_only=True)
class PlainCodec(Codec):
    """Float16 values [M, D]."""

    def shapes(self, tokens: int, dim: int) -> Mapping[str, ArraySpec]:
        """One array."""
        return {"values": half_spec(tokens, dim)}

    def decode_rotated(self, encoded: Encoded) -> mx.array:
        """Widen."""
        return encoded.parts["values"].astype(mx.float32)

    def _encode(self, y: mx.array) -> Parts:
        return {"values": to_half(y)}
