"""KVarN (arXiv 2606.03458): rotate, even out the variance of tokens and channels, round.

From a block y [M, D] the mean of each channel is taken; what is left is divided
by a scale per channel and a scale per token, found by alternating normalisation
(Sinkhorn's iteration on the squares), until every row and column has variance
1. It is then rounded on one symmetric grid. Without the means, which keys keep
through the rotation, the loss on keys doubles.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from kvcache.codecs.base import ArraySpec, Codec, Encoded, Parts
from kvcache.codecs.fit import least_error, unbiased_scale
from kvcache.codecs.half import half_spec, nonzero, to_half
from kvcache.codecs.packing import pack, unpack, words_spec

CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)  # of a token's largest
_ROUNDS = 4
_SHORTEST_TOKEN = 0.01  # of the mean square; a token of zeros weighs no more than this one
_SMALLEST_RMS = 1e-6  # of the largest entry; a channel of zeros is divided by this
_SMALLEST_CHANNEL = 2.0**-14  # of the largest; keeps its float16 scale a normal number


def _unit(y: mx.array) -> mx.array:
    """y with its largest entry 1, so that squares neither overflow nor vanish."""
    return y / nonzero(mx.abs(y).max(axis=(-2, -1), keepdims=True))


def _rms(y: mx.array, axis: int) -> mx.array:
    return mx.maximum(mx.sqrt(mx.mean(y * y, axis=axis, keepdims=True)), _SMALLEST_RMS)


def _channel_means(y: mx.array) -> mx.array:
    """Means [..., 1, D], tokens weighted by 1 / length^2 so that a long one does not set them."""
    lengths = mx.mean(mx.square(_unit(y)), axis=-1, keepdims=True)
    shortest = _SHORTEST_TOKEN * lengths.mean(axis=-2, keepdims=True)
    weights = 1 / nonzero(mx.maximum(lengths, shortest))
    return (y * weights).sum(axis=-2, keepdims=True) / weights.sum(axis=-2, keepdims=True)


def _channel_scales(y: mx.array) -> mx.array:
    """Scales [..., 1, D] of the channels, the largest 1, float16."""
    y = _unit(y)
    total = mx.ones_like(y[..., :1, :])
    for _ in range(_ROUNDS):
        channels = _rms(y, -2)
        total = total * channels
        y = y / channels
        y = y / _rms(y, -1)
    return to_half(mx.maximum(total / total.max(axis=-1, keepdims=True), _SMALLEST_CHANNEL))


@dataclass(frozen=True, kw_only=True)
class KVarNCodec(Codec):
    """words [M, W] (see packing), token_scales [M], channel_scales and channel_means [D].

    value = mean + token scale * channel scale * (code - (2^bits - 1) / 2).
    """

    def shapes(self, tokens: int, dim: int) -> Mapping[str, ArraySpec]:
        """Words, token scales, channel scales and means."""
        return {
            "words": words_spec(self.code_bits, tokens, dim),
            "token_scales": half_spec(tokens),
            "channel_scales": half_spec(dim),
            "channel_means": half_spec(dim),
        }

    def decode_rotated(self, encoded: Encoded) -> mx.array:
        """Mean + token scale * channel scale * centred code."""
        parts = encoded.parts
        codes = unpack(parts["words"], self.code_bits, encoded.dim).astype(mx.float32)
        even = (codes - self._centre) * parts["token_scales"][..., None]
        spread = even * parts["channel_scales"][..., None, :]
        return spread + parts["channel_means"][..., None, :]

    def _encode(self, y: mx.array) -> Parts:
        means = to_half(_channel_means(y))
        y = y - means
        channels = _channel_scales(y)
        even = y / channels
        largest = mx.abs(even).max(axis=-1, keepdims=True) / self._centre
        step = least_error(even, [largest * clip for clip in CLIPS], self._coded)
        levels = self._levels(even, step)
        tokens = to_half(unbiased_scale(y, levels * channels))
        return {
            "words": pack(levels + self._centre, self.code_bits),
            "token_scales": tokens.squeeze(-1),
            "channel_scales": channels.squeeze(-2),
            "channel_means": means.squeeze(-2),
        }

    @property
    def _centre(self) -> float:
        return (2.0**self.code_bits - 1) / 2

    def _levels(self, even: mx.array, step: mx.array) -> mx.array:
        """Centred codes: halves from -centre to +centre."""
        codes = mx.round(even / nonzero(step) + self._centre)
        return mx.clip(codes, 0, 2 * self._centre) - self._centre

    def _coded(self, even: mx.array, step: mx.array) -> mx.array:
        return self._levels(even, step) * step
