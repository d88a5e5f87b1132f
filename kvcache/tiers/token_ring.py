"""Unencoded keys and values in a ring, as MLX arrays: what the sink and hot tiers are kept in.

Token number u lies at u mod capacity. Knows no positions, tiers or attention.
"""

from collections.abc import Iterator

import mlx.core as mx

_FIRST_CAPACITY = 64


class TokenRing:
    """Up to `capacity` tokens of one layer, in memory that grows by doubling until it is full.

    A wrapping number needs the whole capacity, so growing never moves a token.
    """

    def __init__(self, capacity: int, *, dtype: mx.Dtype) -> None:
        self.capacity = capacity
        self._dtype = dtype
        self._arrays: tuple[mx.array, mx.array] | None = None  # [B, Hkv, allocated, D]

    def write(self, start: int, keys: mx.array, values: mx.array) -> None:
        """Put tokens [B, Hkv, L, D], L at most the capacity, at numbers start .. start + L."""
        if not keys.shape[2]:
            return
        self._reserve(keys, start + keys.shape[2])
        for at, first, count in runs(start, keys.shape[2], self.capacity):
            new = (tokens[:, :, first : first + count] for tokens in (keys, values))
            old_keys, old_values = self.arrays
            new_keys, new_values = (part.astype(self._dtype) for part in new)
            # New arrays: a read taken before keeps what it saw.
            self._arrays = (
                mx.slice_update(old_keys, new_keys, mx.array(at), axes=(2,)),
                mx.slice_update(old_values, new_values, mx.array(at), axes=(2,)),
            )

    def read(self, start: int, count: int) -> tuple[mx.array, mx.array]:
        """Keys and values [B, Hkv, count, D] of the tokens start .. start + count."""
        keys, values = self.arrays
        return self._read(keys, start, count), self._read(values, start, count)

    def pending(self) -> list[mx.array]:
        """Arrays that may still have to be evaluated."""
        return list(self._arrays or ())

    @property
    def allocated(self) -> int:
        """Tokens that the memory has room for now."""
        return self._arrays[0].shape[2] if self._arrays else 0

    @property
    def arrays(self) -> tuple[mx.array, mx.array]:
        """Whole keys and values [B, Hkv, allocated, D]."""
        assert self._arrays is not None, "read before the first write"
        return self._arrays

    def _read(self, array: mx.array, start: int, count: int) -> mx.array:
        parts = [array[:, :, at : at + run] for at, _, run in runs(start, count, self.capacity)]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)

    def _reserve(self, like: mx.array, end: int) -> None:
        batch, heads, _, dim = like.shape
        room = max(self.allocated, min(_FIRST_CAPACITY, self.capacity))
        while room < min(end, self.capacity):
            room = min(2 * room, self.capacity)
        if self._arrays is None:
            shape = batch, heads, room, dim
            self._arrays = mx.zeros(shape, self._dtype), mx.zeros(shape, self._dtype)
        elif room > self.allocated:
            more = [(0, 0), (0, 0), (0, room - self.allocated), (0, 0)]
            keys, values = self._arrays
            self._arrays = mx.pad(keys, more), mx.pad(values, more)


def runs(start: int, count: int, capacity: int) -> Iterator[tuple[int, int, int]]:
    """(place, index of the first token, tokens) of each unbroken run of a ring."""
    done = 0
    while done < count:
        at = (start + done) % capacity
        run = min(count - done, capacity - at)
        yield at, done, run
        done += run
