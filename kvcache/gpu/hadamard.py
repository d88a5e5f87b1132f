"""A codec's rotation as kernels take it: signs as bits, instead of a matrix.

The transform of D = m * 2^k channels is one of m parts, whose matrix is of signs, and of 2^k
channels, which the kernels know.
"""

from functools import lru_cache

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from kvcache.codecs.rotation import SignedHadamard
from kvcache.gpu.kernel import LEAST_SIZE

_FACTORS = (28, 20, 12)  # m, where the length is no power of two
_LANES = 32

Words = npt.NDArray[np.uint32]


@lru_cache(maxsize=512)
def rotation_words(
    rotation: SignedHadamard | None, heads: int, dim: int, *, back: bool = False
) -> mx.array | None:
    """uint32: the scale's bits, m words of the parts' signs if m > 1, a head's signs in turn.

    Bit i of part p's word is the sign with which p takes part i; bit l of a head's word e is
    that of channel 32 * e + l. back: of the inverse, transform first. None
    without a rotation. Raises CacheError for a D without transform.
    """
    if rotation is None:
        return None
    basis = rotation.basis(heads, dim)
    matrix = np.array(basis.transposed if back else basis.matrix)
    scale = matrix[:1, :1].view(np.uint32).ravel()
    factor = _factor(dim)
    parts = _part_signs(factor, back=back) if factor > 1 else scale[:0]
    words = np.concatenate([scale, parts, _bits(np.array(basis.signs) < 0).ravel()])
    return _padded(words)


@lru_cache
def part_words(factor: int) -> mx.array:
    """uint32: the m words of the parts' signs alone, for m = `factor`."""
    return _padded(_part_signs(factor, back=False))


def words_bytes(heads: int, dim: int) -> int:
    """Of `rotation_words`."""
    parts = _factor(dim) if _factor(dim) > 1 else 0
    words = 1 + parts + heads * -(-dim // _LANES)
    return max(LEAST_SIZE, words) * np.dtype(np.uint32).itemsize


def _factor(dim: int) -> int:
    """m."""
    return next((m for m in _FACTORS if dim % m == 0), 1)


def _part_signs(factor: int, *, back: bool) -> Words:
    """[m]. MLX transforms no vector of m channels, so the matrix is seen in one twice as large."""
    matrix = np.array(mx.hadamard_transform(mx.eye(2 * factor)))[::2, ::2]
    return _bits((matrix if back else matrix.T) < 0).ravel()


def _padded(words: Words) -> mx.array:
    return mx.array(np.pad(words, (0, max(0, LEAST_SIZE - len(words)))))


def _bits(negative: npt.NDArray[np.bool_]) -> Words:
    """[rows, n] -> [rows, n / 32 rounded up], the first of a row in its lowest bit."""
    room = -negative.shape[1] % _LANES
    packed = np.packbits(np.pad(negative, ((0, 0), (0, room))), axis=1, bitorder="little")
    return np.ascontiguousarray(packed).view(np.dtype("<u4")).astype(np.uint32)
