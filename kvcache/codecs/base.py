"""The contract of every codec, and what all of them share.

Shapes: a block is x [B, Hkv, M, D], M tokens of one tensor. Encoded it is a few
named arrays, each [B, Hkv, *trailing], whose trailing shapes depend on (M, D)
alone, so that a ring of blocks can be allocated before the first is encoded.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import mlx.core as mx

from kvcache.codecs.rotation import Basis, SignedHadamard
from kvcache.errors import CacheError
from kvcache.given import array, instance, integer

Parts = Mapping[str, mx.array]

# Of what is encoded, as which larger numbers count: scales end at 65504 anyway, and sums of a
# block's squares stay within float32. The kernels have the same.
LARGEST = 2.0**50


class ArraySpec(NamedTuple):
    """Trailing shape and dtype of one encoded array."""

    shape: tuple[int, ...]
    dtype: mx.Dtype

    @property
    def nbytes(self) -> int:
        """Bytes for one KV head of one batch row."""
        return prod(self.shape) * self.dtype.size


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Encoded blocks: the arrays that `Codec.shapes` names, and the head dim they decode to.

    Any leading axes that end in Hkv will do: [B, Hkv, ...] as encoded, or
    [S, B, Hkv, ...] as a ring of S blocks holds them.
    """

    parts: Parts
    dim: int


@dataclass(frozen=True, kw_only=True)
class Codec(ABC):
    """Encodes and decodes blocks, by MLX operations only, lazily and on any device.

    code_bits: width of one code; norms, scales and padding come on top
    (`bits_per_element` counts them).
    rotation: the basis in which the block is coded; None is the given one.
    """

    name: str
    code_bits: int
    rotation: SignedHadamard | None = None

    def encode(self, x: mx.array) -> Encoded:
        """Encode x [B, Hkv, M, D] of any floating dtype, computing in float32.

        Raises CacheError for another rank or dtype, or a D that the rotation
        does not take. Finite input never gives NaN; magnitudes past float16's
        range saturate.
        """
        x = array("x", x)
        if x.ndim != 4 or not mx.issubdtype(x.dtype, mx.floating):
            raise CacheError(
                f"got {x.dtype} {x.shape} to encode with {self.name}, "
                "expected floating-point [B, Hkv, M, D]"
            )
        bounded = x if x.dtype == mx.float16 else mx.clip(x, -self.largest, self.largest)
        return Encoded(parts=self._encode(self.rotate(bounded)), dim=x.shape[-1])

    @property
    def largest(self) -> float:
        """As which larger numbers are encoded."""
        return LARGEST

    def decode(self, encoded: Encoded) -> mx.array:
        """The block [..., Hkv, M, D] in float32."""
        instance("encoded", encoded, Encoded)
        return self.unrotate(self.decode_rotated(encoded))

    def rotate(self, x: mx.array) -> mx.array:
        """x [..., Hkv, rows, D] in the codec's basis, float32.

        Of queries, so that scores can be taken against `decode_rotated`: put
        the G query heads of a KV head into its rows first.
        """
        x = x.astype(mx.float32)
        return x if self.rotation is None else self.rotation.forward(x)

    def unrotate(self, y: mx.array) -> mx.array:
        """The inverse of `rotate`; of an attention output, once for all its tokens."""
        return y if self.rotation is None else self.rotation.inverse(y)

    def basis(self, heads: int, dim: int) -> Basis | None:
        """What `rotate` does, as arrays for kernels; None where it does nothing."""
        return None if self.rotation is None else self.rotation.basis(heads, dim)

    def bits_per_element(self, tokens: int, dim: int) -> float:
        """Bits per element of a block, all arrays and their padding included."""
        tokens, dim = integer("tokens", tokens, least=1), integer("dim", dim, least=1)
        total = sum(spec.nbytes for spec in self.shapes(tokens, dim).values())
        return 8 * total / (tokens * dim)

    @abstractmethod
    def shapes(self, tokens: int, dim: int) -> Mapping[str, ArraySpec]:
        """Trailing shape and dtype of each array of an encoded block."""

    @abstractmethod
    def decode_rotated(self, encoded: Encoded) -> mx.array:
        """The block [..., Hkv, M, D] in the codec's basis, float32."""

    @abstractmethod
    def _encode(self, y: mx.array) -> Parts:
        """Encode y [B, Hkv, M, D], float32 and already in the codec's basis."""
