"""Unencoded keys and values in a ring of plain memory, written and read in place.

Token number u lies at u mod capacity. The system gives pages as they are
touched, so the ring is as large as its plan from the beginning.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from kvcache.config import HotDtype
from kvcache.cpu_memory import DTYPES, storable, zeros
from kvcache.native import structs
from kvcache.native.structs import Array, strided
from kvcache.tiers.token_ring import runs


class HostTokens(NamedTuple):
    """Keys and values [B, Hkv, L, D] in memory; bfloat16 as its bits."""

    keys: Array
    values: Array

    @property
    def length(self) -> int:
        """L."""
        return int(self.keys.shape[2])

    def cut(self, start: int, stop: int) -> "HostTokens":
        """The tokens [start, stop), not copied."""
        return HostTokens(self.keys[:, :, start:stop], self.values[:, :, start:stop])

    def as_arrays(self, dtype: HotDtype) -> tuple[mx.array, mx.array]:
        """As MLX arrays, copied."""
        keys, values = mx.array(self.keys), mx.array(self.values)
        if dtype is HotDtype.BF16:
            return keys.view(mx.bfloat16), values.view(mx.bfloat16)
        return keys, values

    @classmethod
    def of(cls, keys: mx.array, values: mx.array, dtype: HotDtype) -> "HostTokens":
        """MLX arrays in a hot dtype; what is too large for it becomes infinite."""
        return cls(storable(keys, dtype), storable(values, dtype))


class HostRing:
    """Up to `capacity` tokens of shape [B, Hkv, _, D]."""

    def __init__(self, capacity: int, shape: tuple[int, int, int], dtype: HotDtype) -> None:
        self.capacity, self.shape = capacity, shape
        batch, heads, dim = shape
        # An empty ring has an address too.
        size = batch, heads, max(capacity, 1), dim
        keys, values = (zeros(size, DTYPES[dtype]) for _ in range(2))
        self._memory = HostTokens(keys, values)

    def write(self, number: int, tokens: HostTokens) -> None:
        """Put at most `capacity` tokens at numbers number .. number + L."""
        for at, first, count in runs(number, tokens.length, self.capacity):
            into, new = self._memory.cut(at, at + count), tokens.cut(first, first + count)
            into.keys[...], into.values[...] = new

    def pieces(self, number: int, count: int) -> Iterator[tuple[int, HostTokens]]:
        """(index of its first token, tokens) of one or two runs, in place."""
        for at, first, run in runs(number, count, self.capacity):
            yield first, self._memory.cut(at, at + run)

    @property
    def struct(self) -> structs.Ring:
        """As the kernels take it."""
        keys, values = strided(self._memory.keys), strided(self._memory.values)
        return structs.Ring(keys, values, self.capacity)

    def read(self, number: int, count: int) -> HostTokens:
        """`count` tokens from a number; in place where they lie side by side."""
        return side_by_side([tokens for _, tokens in self.pieces(number, count)])


def side_by_side(parts: Sequence[HostTokens]) -> HostTokens:
    """Several runs of tokens as one."""
    if len(parts) == 1:
        return parts[0]
    keys, values = zip(*parts, strict=True)
    return HostTokens(np.concatenate(keys, axis=2), np.concatenate(values, axis=2))
