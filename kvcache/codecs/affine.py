"""Affine codes: value = scale * code + zero, over groups of one token's channels
(`q`, and `h` in the rotated basis) or over one channel's tokens (`kivi`, `hkivi`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from kvcache.codecs.base import ArraySpec, Codec, Encoded, Parts
from kvcache.codecs.half import half_spec, nonzero, to_half
from kvcache.codecs.packing import pack, unpack, words_spec

_LARGEST_GROUP = 64


def group_size(dim: int) -> int:
    """Channels that share a scale: the largest divisor of `dim` up to 64.

    Groups of 32 cost half a bit more at D 64 and buy less than half a bit.
    """
    return max(size for size in range(1, min(dim, _LARGEST_GROUP) + 1) if dim % size == 0)


def _affine(y: mx.array, bits: int, axis: int) -> tuple[mx.array, mx.array, mx.array]:
    """Codes like y, and float16 scales and zeros with `axis` of size 1: from minimum to maximum."""
    top = 2**bits - 1
    zeros = to_half(y.min(axis=axis, keepdims=True))
    base = zeros.astype(mx.float32)
    scales = to_half((y.max(axis=axis, keepdims=True) - base) / top)
    codes = mx.clip(mx.round((y - base) / nonzero(scales)), 0, top)
    return codes, scales, zeros


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
        codes, scales, zeros = _affine(grouped, self.code_bits, axis=-1)
        return {
            "words": pack(codes.reshape(y.shape), self.code_bits),
            "scales": scales.squeeze(-1),
            "zeros": zeros.squeeze(-1),
        }


@dataclass(frozen=True, kw_only=True)
class ChannelAffineCodec(Codec):
    """A scale and a zero for each channel of the block (KIVI's keys, arXiv 2402.02750).

    words [M, W] (see packing), scales and zeros [D].
    """

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
        codes, scales, zeros = _affine(y, self.code_bits, axis=-2)
        return {
            "words": pack(codes, self.code_bits),
            "scales": scales.squeeze(-2),
            "zeros": zeros.squeeze(-2),
        }
