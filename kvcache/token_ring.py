"""Unencoded keys and values in a ring: what the sink and hot tiers are kept in.

Token number u lies at u mod capacity. Knows no positions, tiers or attention.
"""

from collections.abc import Iterator
from typing import NamedTuple

import mlx.core as mx

from kvcache.buffers import DeviceBuffer, HostBuffer, make_buffer
from kvcache.config import Backend, HotDtype
from kvcache.native.library import Array

_FIRST_CAPACITY = 64

Buffer = DeviceBuffer | HostBuffer


class HostPiece(NamedTuple):
    """Consecutive tokens in plain memory: keys and values [B, Hkv, count, D], not copied."""

    keys: Array
    values: Array


class TokenRing:
    """Up to `capacity` tokens of one layer, in memory that grows by doubling until it is full.

    A wrapping number needs the whole capacity, so growing never moves a token.
    """

    def __init__(self, capacity: int, *, dtype: HotDtype, backend: Backend) -> None:
        self.capacity = capacity
        self._dtype = dtype
        self._backend = backend
        self._buffers: tuple[Buffer, Buffer] | None = None

    def write(self, start: int, keys: mx.array, values: mx.array) -> None:
        """Put tokens [B, Hkv, L, D], L at most the capacity, at numbers start .. start + L."""
        if not keys.shape[2]:
            return
        self._reserve(keys, start + keys.shape[2])
        for at, first, count in self._runs(start, keys.shape[2]):
            for buffer, tokens in zip(self._held(), (keys, values), strict=True):
                buffer.write(at, tokens[:, :, first : first + count])

    def read(self, start: int, count: int) -> tuple[mx.array, mx.array]:
        """Keys and values [B, Hkv, count, D] of the tokens start .. start + count."""
        keys, values = self._held()
        return self._read(keys, start, count), self._read(values, start, count)

    def host_pieces(self, start: int, count: int) -> list[HostPiece]:
        """The same in place, as one or two pieces; for the CPU backend."""
        keys, values = self._held()
        assert isinstance(keys, HostBuffer)
        assert isinstance(values, HostBuffer)
        return [
            HostPiece(keys.memory[:, :, at : at + n], values.memory[:, :, at : at + n])
            for at, _, n in self._runs(start, count)
        ]

    def pending(self) -> list[mx.array]:
        """Arrays that may still have to be evaluated."""
        return [array for buffer in self._buffers or () for array in buffer.pending()]

    @property
    def allocated(self) -> int:
        """Tokens that the memory has room for now."""
        return self._buffers[0].shape[2] if self._buffers else 0

    def release(self) -> None:
        """Give the memory back."""
        self._buffers = None

    def _held(self) -> tuple[Buffer, Buffer]:
        assert self._buffers is not None, "read before the first write"
        return self._buffers

    def _runs(self, start: int, count: int) -> Iterator[tuple[int, int, int]]:
        """(place, index of the first token, tokens) of each unbroken run."""
        done = 0
        while done < count:
            at = (start + done) % self.capacity
            run = min(count - done, self.capacity - at)
            yield at, done, run
            done += run

    def _read(self, buffer: Buffer, start: int, count: int) -> mx.array:
        parts = [buffer.read_range(at, run) for at, _, run in self._runs(start, count)]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)

    def _reserve(self, like: mx.array, end: int) -> None:
        batch, heads, _, dim = like.shape
        room = max(self.allocated, min(_FIRST_CAPACITY, self.capacity))
        while room < min(end, self.capacity):
            room = min(2 * room, self.capacity)
        if self._buffers is None:
            shape = batch, heads, room, dim
            self._buffers = (
                make_buffer(shape, self._dtype, self._backend),
                make_buffer(shape, self._dtype, self._backend),
            )
        elif room > self.allocated:
            keys, values = self._buffers
            held = self.allocated
            self._buffers = keys.grown(room, held), values.grown(room, held)
