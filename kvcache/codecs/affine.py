"""Affine codes: value = scale * code + zero, over groups of one token's channels
(`q`, and `h` in the rotated basis) or over one channel's tokens (`kivi`, `hkivi`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self, TypeGuard

import mlx.core as mx

from kvcache.codecs.base import ArraySpec, Codec, Encoded, Parts
from kvcache.codecs.feedback import Feedback, LayerMetric
from kvcache.codecs.fit import unbiased_scale
from kvcache.codecs.half import half_spec, nonzero, to_half
from kvcache.codecs.packing import pack, unpack, words_spec

_LARGEST_GROUP = 64
# Of a channel's span, what codes of so many bits span where feedback makes up for what is cut.
FEEDBACK_SPANS = {5: 1.0, 4: 1.0, 3: 1.0, 2: 0.87}


def group_size(dim: int) -> int:
    """Channels that share a scale: the largest divisor of `dim` up to 64.

    Groups of 32 cost half a bit more at D 64 and buy less than half a bit.
    """
    return max(size for size in range(1, min(dim, _LARGEST_GROUP) + 1) if dim % size == 0)


@dataclass(frozen=True, kw_only=True)
class TokenAffineCodec(Codec):
    """A scale and a zero for each token and group of channels, as `mx.quantize` has them.

    words [M, W] (see packing), scales and zeros [M, D / group]. Where MLX knows
    the group size, `mx.dequantize` and `mx.quantized_matmul` read these arrays.
    """

    def shapes(self, tokens: int, dim: int) -> Mapping[str, ArraySpec]:
        """Words, scales, zeros."""
        per_group = half_spec(tokens, dim // group_size(dim))
        return {
            "words": words_spec(self.code_bits, tokens, dim),
            "scales": per_group,
            "zeros": per_group,
        }

    def decode_rotated(self, encoded: Encoded) -> mx.array:
        """scale * code + zero."""
        parts, dim = encoded.parts, encoded.dim
        codes = unpack(parts["words"], self.code_bits, dim)
        grouped = codes.astype(mx.float32).reshape(*codes.shape[:-1], -1, group_size(dim))
        return (grouped * parts["scales"][..., None] + parts["zeros"][..., None]).flatten(-2)

    def _encode(self, y: mx.array) -> Parts:
        grouped = y.reshape(*y.shape[:-1], -1, group_size(y.shape[-1]))
        top = 2**self.code_bits - 1
        zeros = to_half(grouped.min(axis=-1, keepdims=True))
        base = zeros.astype(mx.float32)
        scales = to_half((grouped.max(axis=-1, keepdims=True) - base) / top)
        codes = mx.clip(mx.round((grouped - base) / nonzero(scales)), 0, top)
        return {
            "words": pack(codes.reshape(y.shape), self.code_bits),
            "scales": scales.squeeze(-1),
            "zeros": zeros.squeeze(-1),
        }


@dataclass(frozen=True, kw_only=True)
class ChannelAffineCodec(Codec):
    """A scale and a zero for each channel of the block (KIVI's keys, arXiv 2402.02750).

    Codes span the channel from minimum to maximum: clipping would pay in squared
    error, but the largest entries of keys are the ones that attention goes by.
    words [M, W] (see packing), scales and zeros [D].

    feedback: how to encode in the metric of queries; None is plain rounding. No part of
    equality, since blocks are decoded alike.
    """

    feedback: Feedback | None = field(default=None, compare=False, repr=False)

    def in_metric(self, metric: LayerMetric) -> Self:
        """The same, which encodes with feedback."""
        return replace(self, feedback=metric.feedback(self.rotation))

    def shapes(self, tokens: int, dim: int) -> Mapping[str, ArraySpec]:
        """Words, scales, zeros."""
        return {
            "words": words_spec(self.code_bits, tokens, dim),
            "scales": half_spec(dim),
            "zeros": half_spec(dim),
        }

    def decode_rotated(self, encoded: Encoded) -> mx.array:
        """scale * code + zero."""
        parts = encoded.parts
        codes = unpack(parts["words"], self.code_bits, encoded.dim).astype(mx.float32)
        return codes * parts["scales"][..., None, :] + parts["zeros"][..., None, :]

    def _encode(self, y: mx.array) -> Parts:
        if self.feedback is not None:
            return self._encode_with(self.feedback, y)
        low = y.min(axis=-2, keepdims=True)
        step = (y.max(axis=-2, keepdims=True) - low) / (2**self.code_bits - 1)
        coded = _CodedChannels.fitted(y, mx.round((y - low) / nonzero(step)))
        return self._parts(coded.codes, coded.scales, coded.zeros)

    def _encode_with(self, feedback: Feedback, y: mx.array) -> Parts:
        """Channel by channel; each is given its share of the errors of those before it."""
        rest, coded = _placed(y, feedback.order), []
        for at in range(y.shape[-1]):
            channel = _CodedChannels.spanning(rest[..., :1], self.code_bits)
            rest = rest[..., 1:] - channel.error * feedback.weights[:, at : at + 1, at + 1 :]
            coded.append(channel)
        back = mx.argsort(feedback.order, axis=-1)
        codes, scales, zeros = (
            _placed(mx.concatenate(each, axis=-1), back)
            for each in (
                [channel.codes for channel in coded],
                [channel.scales for channel in coded],
                [channel.zeros for channel in coded],
            )
        )
        return self._parts(codes, scales, zeros)

    def _parts(self, codes: mx.array, scales: mx.array, zeros: mx.array) -> Parts:
        return {
            "words": pack(codes, self.code_bits),
            "scales": scales.squeeze(-2),
            "zeros": zeros.squeeze(-2),
        }


def gains_by_metric(codec: Codec) -> TypeGuard[ChannelAffineCodec]:
    """Whether keys by this codec lose less with feedback: those in the given basis do not."""
    return isinstance(codec, ChannelAffineCodec) and codec.rotation is not None


def _placed(x: mx.array, channels: mx.array) -> mx.array:
    """The channels [Hkv, D] of each head of x [B, Hkv, rows, D], in that order."""
    return mx.take_along_axis(x, mx.broadcast_to(channels[:, None], x.shape), axis=-1)


class _CodedChannels(NamedTuple):
    """C channels of a block: codes [..., M, C]; scales and zeros [..., 1, C], float16.

    error [..., M, C]: what the codes leave of them, before scales and zeros are halved, so
    that what depends on it does not hang on the last bit of a half.
    """

    codes: mx.array
    scales: mx.array
    zeros: mx.array
    error: mx.array

    @classmethod
    def fitted(cls, y: mx.array, codes: mx.array) -> "_CodedChannels":
        """With scales and zeros that keep each channel's length and mean: scales of least error
        would flatten every score, which costs more than it saves.
        """
        code_mean, mean = codes.mean(axis=-2, keepdims=True), y.mean(axis=-2, keepdims=True)
        centred, centred_codes = y - mean, codes - code_mean
        wide = unbiased_scale(centred, centred_codes, axis=-2)
        scales = to_half(wide)
        return cls(
            codes=codes,
            scales=scales,
            zeros=to_half(mean - scales * code_mean),
            error=centred - wide * centred_codes,
        )

    @classmethod
    def spanning(cls, y: mx.array, bits: int) -> "_CodedChannels":
        """Codes over the channels' spans or, of two bits, a little less."""
        low, high = y.min(axis=-2, keepdims=True), y.max(axis=-2, keepdims=True)
        top = 2**bits - 1
        step = (high - low) * (FEEDBACK_SPANS[bits] / top)
        middle = low + (high - low) / 2
        codes = mx.clip(mx.round((y - middle) / nonzero(step) + top / 2), 0, top)
        return cls.fitted(y, codes)
