"""The rotation of a codec as the kernels apply it: one matrix for all heads, signs for each."""

from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx

from kvcache.codecs.base import Codec


@dataclass(frozen=True, kw_only=True)
class Basis:
    """rotate(x) = (x * signs) @ matrix, and back: (y @ transposed) * signs.

    matrix, transposed [D, D]; signs [Hkv, D]; float32.
    """

    matrix: mx.array
    transposed: mx.array
    signs: mx.array


@lru_cache(maxsize=256)
def basis_of(codec: Codec, kv_heads: int, dim: int) -> Basis | None:
    """The basis of a codec that rotates, else None."""
    if codec.rotation is None:
        return None
    matrix = _hadamard(dim)
    # Row i of a head's rotated unit matrix is sign i times row i of the transform, up to rounding.
    rows = codec.rotate(mx.broadcast_to(mx.eye(dim), (kv_heads, dim, dim)))
    signs = mx.sign((rows * matrix).sum(axis=-1))
    transposed = mx.contiguous(matrix.T)
    mx.eval(signs, transposed)
    return Basis(matrix=matrix, transposed=transposed, signs=signs)


@lru_cache
def _hadamard(dim: int) -> mx.array:
    matrix = mx.hadamard_transform(mx.eye(dim))
    mx.eval(matrix)
    return matrix
