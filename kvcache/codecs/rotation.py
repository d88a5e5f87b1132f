"""A random rotation of head vectors that spreads outlier channels evenly.

Rotating is x -> H (s * x): random signs s first, then an orthonormal Hadamard
transform. Without the signs a constant vector would end in one channel. Dot
products are unchanged, so attention may run in the rotated basis: rotate the
queries once, rotate the output back once.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx
import numpy as np

from kvcache.errors import CacheError

_FACTORS = (1, 12, 20, 28)  # MLX transforms lengths m * 2^k for these m


def hadamard_factor(dim: int) -> int | None:
    """The m of a length m * 2^k, k > 0, that MLX transforms; None for another."""
    powers = {m: dim // m for m in _FACTORS if dim % m == 0}
    return next((m for m, q in powers.items() if q > 1 and q & (q - 1) == 0), None)


def check_rotatable(dim: int) -> None:
    """Raise CacheError unless MLX has a Hadamard transform of this length.

    MLX itself must not be asked: its CPU transform of, say, 72 writes out of
    bounds, and its Metal one does not compile for 12, 20 and 28.
    """
    if hadamard_factor(dim) is None:
        raise CacheError(
            f"got head dimension {dim}, but Hadamard-rotated codecs need m * 2^k with k > 0 and m "
            f"one of {', '.join(map(str, _FACTORS))}; use one that does not rotate, such as q8"
        )


@lru_cache(maxsize=1024)
def _signs(seed: int, purpose: str, heads: int, dim: int) -> mx.array:
    """Signs [heads, 1, dim], +1 or -1; a head's do not depend on how many heads there are.

    From a hash, not a generator: saved blocks must decode alike for ever.
    """
    rows = [
        hashlib.shake_256(f"{purpose} {seed} {head}".encode()).digest((dim + 7) // 8)
        for head in range(heads)
    ]
    bits = np.unpackbits(np.frombuffer(b"".join(rows), np.uint8).reshape(heads, -1), axis=1)
    return mx.array(1 - 2 * bits[:, None, :dim].astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class Basis:
    """A rotation of one round as arrays: (x * signs) @ matrix, and back (y @ transposed) * signs.

    matrix, transposed [D, D]; signs [Hkv, D]; float32, evaluated.
    """

    matrix: mx.array
    transposed: mx.array
    signs: mx.array


@dataclass(frozen=True, kw_only=True)
class SignedHadamard:
    """An orthonormal rotation per KV head, drawn from `seed` (the layer).

    rounds: how often signs and transform follow each other; one spreads
    outliers, two come close to a uniformly random rotation.
    purpose: tells apart independent rotations of one layer.
    """

    seed: int
    rounds: int = 1
    purpose: str = "basis"

    def forward(self, x: mx.array) -> mx.array:
        """Rotate x [..., Hkv, rows, D], float32. Raises CacheError for a D without transform."""
        for at in range(self.rounds):
            x = mx.hadamard_transform(x * self._signs_of(x, at))
        return x

    def inverse(self, y: mx.array) -> mx.array:
        """Undo `forward`."""
        for at in reversed(range(self.rounds)):
            y = _transpose_transform(y) * self._signs_of(y, at)
        return y

    def basis(self, heads: int, dim: int) -> Basis:
        """The same for kernels, of a rotation of one round. Raises CacheError as `forward`."""
        return _basis(self, heads, dim)

    def _signs_of(self, x: mx.array, at: int) -> mx.array:
        check_rotatable(x.shape[-1])
        return _signs(self.seed, f"{self.purpose} {at}", x.shape[-3], x.shape[-1])


@lru_cache(maxsize=256)
def _basis(rotation: SignedHadamard, heads: int, dim: int) -> Basis:
    assert rotation.rounds == 1, "two rounds are no one matrix"
    check_rotatable(dim)
    matrix, transposed = _matrices(dim)
    signs = _signs(rotation.seed, f"{rotation.purpose} 0", heads, dim).squeeze(1)
    mx.eval(signs)
    return Basis(matrix=matrix, transposed=transposed, signs=signs)


@lru_cache
def _matrices(dim: int) -> tuple[mx.array, mx.array]:
    """The transform as a matrix, x @ matrix, and its transpose; shared by all layers."""
    matrix = mx.hadamard_transform(mx.eye(dim))
    transposed = mx.contiguous(matrix.T)
    mx.eval(matrix, transposed)
    return matrix, transposed


def _transpose_transform(y: mx.array) -> mx.array:
    dim = y.shape[-1]
    if dim % 20 and dim % 28:
        return mx.hadamard_transform(y)
    # These matrices are not symmetric, so not their own inverse.
    return y @ _matrices(dim)[1]
