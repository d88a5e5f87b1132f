"""TurboQuant (arXiv 2504.19874): norm, random rotation, Lloyd-Max per coordinate.

`TurboCodec` is its MSE form, `TurboProdCodec` its inner-product form;
`FittedTurboCodec` codes the same layout with a scale chosen token by token.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, lgamma, pi, sqrt

import mlx.core as mx

from kvcache.codecs.base import ArraySpec, Codec, Encoded, Parts
from kvcache.codecs.fit import least_error, unbiased_scale
from kvcache.codecs.half import half_spec, nonzero, to_half
from kvcache.codecs.lloyd_max import levels, lookup, nearest
from kvcache.codecs.packing import pack, unpack, words_spec
from kvcache.codecs.rotation import SignedHadamard

CLIPS = (1.0, 0.9, 0.8, 0.7, 0.55)  # of a token's largest; more lower the loss no further


def _norm(x: mx.array) -> mx.array:
    return mx.linalg.norm(x, axis=-1, keepdims=True)


def _mean_coordinate(dim: int) -> float:
    """Mean |u_1| of a uniformly random unit vector u, about sqrt(2 / (pi D))."""
    return exp(lgamma(dim / 2) - lgamma((dim + 1) / 2)) / sqrt(pi)


def _codes_of_direction(y: mx.array, bits: int) -> mx.array:
    """Codes of y [..., D] scaled to length sqrt(D)."""
    scale = sqrt(y.shape[-1]) / mx.maximum(_norm(y), 1e-30)
    return nearest(y * scale, bits)


@dataclass(frozen=True, kw_only=True)
class TurboCodec(Codec):
    """words [M, W] of level indices, scales [M]; value = scale * level.

    The nearest levels are too short on average. The stored scale is
    original norm / norm of the levels, so the length comes back exactly.
    """

    def shapes(self, tokens: int, dim: int) -> Mapping[str, ArraySpec]:
        """Words, scales."""
        return {"words": words_spec(self.code_bits, tokens, dim), "scales": half_spec(tokens)}

    def decode_rotated(self, encoded: Encoded) -> mx.array:
        """scale * level."""
        codes = unpack(encoded.parts["words"], self.code_bits, encoded.dim)
        return lookup(codes, self.code_bits) * encoded.parts["scales"][..., None]

    def _encode(self, y: mx.array) -> Parts:
        codes = _codes_of_direction(y, self.code_bits)
        scales = _norm(y) / _norm(lookup(codes, self.code_bits))
        return {"words": pack(codes, self.code_bits), "scales": to_half(scales.squeeze(-1))}


@dataclass(frozen=True, kw_only=True)
class FittedTurboCodec(TurboCodec):
    """`TurboCodec` whose scale is searched for each token, then freed of shrink.

    Rotated heads of 64 or 128 channels are not quite Gaussian: fitting the
    table to each token loses less than fitting all to one distribution.
    """

    def _encode(self, y: mx.array) -> Parts:
        largest = mx.abs(y).max(axis=-1, keepdims=True) / levels(self.code_bits)[-1]
        scale = least_error(y, [largest * clip for clip in CLIPS], self._coded)
        codes = nearest(y / nonzero(scale), self.code_bits)
        scales = unbiased_scale(y, lookup(codes, self.code_bits))
        return {"words": pack(codes, self.code_bits), "scales": to_half(scales.squeeze(-1))}

    def _coded(self, y: mx.array, scale: mx.array) -> mx.array:
        return lookup(nearest(y / nonzero(scale), self.code_bits), self.code_bits) * scale


@dataclass(frozen=True, kw_only=True)
class TurboProdCodec(Codec):
    """One bit fewer, plus one bit for each coordinate of the projected residual (QJL).

    words [M, W] of level indices, scales [M] (norm / sqrt(D)), residual_words
    [M, ceil(D / 32)] the signs of R r (1 is negative), residual_scales [M] the
    residual's norm |r| / sqrt(D).

    Decoding gives x^ + c |r| R^T sign(R r), whose inner product with a query is
    unbiased over R, and so estimates scores; as a reconstruction it is worse
    than `TurboCodec`. The paper projects by a Gaussian matrix S and has
    c = sqrt(pi / 2) / D; here R is a random rotation, nothing to store, and c
    differs by the factor sqrt(D) of its rows' length and 1 / (4 D).
    """

    projection: SignedHadamard

    def shapes(self, tokens: int, dim: int) -> Mapping[str, ArraySpec]:
        """Words and scales of the levels and of the residual."""
        return {
            "words": words_spec(self.code_bits, tokens, dim),
            "scales": half_spec(tokens),
            "residual_words": words_spec(1, tokens, dim),
            "residual_scales": half_spec(tokens),
        }

    def decode_rotated(self, encoded: Encoded) -> mx.array:
        """The unbiased estimate (see the class)."""
        parts, dim = encoded.parts, encoded.dim
        codes = unpack(parts["words"], self.code_bits, dim)
        signs = 1.0 - 2.0 * unpack(parts["residual_words"], 1, dim)
        residual = self.projection.inverse(signs) * parts["residual_scales"][..., None]
        near = lookup(codes, self.code_bits) * parts["scales"][..., None]
        return near + residual / (sqrt(dim) * _mean_coordinate(dim))

    def _encode(self, y: mx.array) -> Parts:
        dim = y.shape[-1]
        codes = _codes_of_direction(y, self.code_bits)
        scales = to_half(_norm(y) / sqrt(dim))
        residual = y - lookup(codes, self.code_bits) * scales
        negative = self.projection.forward(residual) < 0
        return {
            "words": pack(codes, self.code_bits),
            "scales": scales.squeeze(-1),
            "residual_words": pack(negative, 1),
            "residual_scales": to_half(_norm(residual) / sqrt(dim)).squeeze(-1),
        }
