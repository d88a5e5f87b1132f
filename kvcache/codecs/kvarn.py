"""KVarN (arXiv 2606.03458): rotate, even out the variance of tokens and channels, round.

A block y [M, D] is divided by a scale per channel and a scale per token, found
by alternating normalisation (Sinkhorn's iteration on y squared), until every
row and column has variance 1. What is left is coded on one symmetric grid.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from kvcache.codecs.base import ArraySpec, Codec, Encoded, Parts
from kvcache.codecs.half import half_spec, nonzero, to_half
from kvcache.codecs.packing import pack, unpack, words_spec

_ROUNDS = 4
_CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
_SMALLEST_CHANNEL = 2.0**-14  # of the largest; keeps its float16 scale a normal number


def _channel_scales(y: mx.array) -> mx.array:
    """Scales [..., 1, D] of the channels, the largest 1, float16."""
    total = mx.ones_like(y[..., :1, :])
    for _ in range(_ROUNDS):
        channels = mx.sqrt(mx.mean(y * y, axis=-2, keepdims=True)) + 1e-20
        y = y / channels
        total = total * channels
        y = y / (mx.sqrt(mx.mean(y * y, axis=-1, keepdims=True)) + 1e-20)
    return to_half(mx.maximum(total / total.max(axis=-1, keepdims=True), _SMALLEST_CHANNEL))


@dataclass(frozen=True, kw_only=True)
class KVarNCodec(Codec):
    """words [M, W] (see packing), token_scales [M], channel_scales [D].

    value = token scale * channel scale * (code - (2^bits - 1) / 2).
    """

    def shapes(self, tokens: int, dim: int) -> Mapping[str, ArraySpec]:
        """Words, token scales, channel scales."""
        return {
            "words": words_spec(self.code_bits, tokens, dim),
            "token_scales": half_spec(tokens),
            "channel_scales": half_spec(dim),
        }

    def decode_rotated(self, encoded: Encoded) -> mx.array:
        """Token scale * channel scale * centred code."""
        parts = encoded.parts
        codes = unpack(parts["words"], self.code_bits, encoded.dim).astype(mx.float32)
        centred = codes - self._centre
        return centred * parts["token_scales"][..., None] * parts["channel_scales"][..., None, :]

    def _encode(self, y: mx.array) -> Parts:
        channels = _channel_scales(y)
        even = y / channels
        tokens = self._token_scales(even)
        return {
            "words": pack(self._codes(even, tokens), self.code_bits),
            "token_scales": tokens.squeeze(-1),
            "channel_scales": channels.squeeze(-2),
        }

    @property
    def _centre(self) -> float:
        return (2.0**self.code_bits - 1) / 2

    def _codes(self, even: mx.array, tokens: mx.array) -> mx.array:
        top = 2**self.code_bits - 1
        return mx.clip(mx.round(even / nonzero(tokens) + self._centre), 0, top)

    def _token_scales(self, even: mx.array) -> mx.array:
        """The scales [..., M, 1] of least squared error, out of a few that clip the largest."""
        largest = mx.abs(even).max(axis=-1, keepdims=True) / self._centre
        best = to_half(largest)
        least = self._error(even, best)
        for clip in _CLIPS[1:]:
            scales = to_half(largest * clip)
            error = self._error(even, scales)
            best = mx.where(error < least, scales, best)
            least = mx.minimum(error, least)
        return best

    def _error(self, even: mx.array, tokens: mx.array) -> mx.array:
        coded = (self._codes(even, tokens) - self._centre) * tokens
        return mx.square(coded - even).sum(axis=-1, keepdims=True)
