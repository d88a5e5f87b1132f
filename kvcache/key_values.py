"""The two buffers of a layer, keys and values, always of one shape and kind.

Does not know how many of its tokens count; a cache does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from kvcache.buffers import DeviceBuffer, HostBuffer, Whole, make_buffer
from kvcache.config import Backend, HotDtype
from kvcache.errors import CacheError

Layout = tuple[int, int, int]


@dataclass(frozen=True)
class KeyValueBuffers:
    """Keys and values [B, Hkv, capacity, D] each."""

    keys: DeviceBuffer | HostBuffer
    values: DeviceBuffer | HostBuffer

    @classmethod
    def make(
        cls, layout: Layout, capacity: int, dtype: HotDtype, backend: Backend
    ) -> "KeyValueBuffers":
        """Empty buffers for B, Hkv and D = `layout`."""
        shape = layout[0], layout[1], capacity, layout[2]
        return cls(make_buffer(shape, dtype, backend), make_buffer(shape, dtype, backend))

    @property
    def layout(self) -> Layout:
        """B, Hkv and D."""
        batch, heads, _, dim = self.keys.shape
        return batch, heads, dim

    @property
    def capacity(self) -> int:
        """Tokens that have room."""
        return self.keys.shape[2]

    def write(self, at: int, k: mx.array, v: mx.array) -> None:
        """Put k and v [B, Hkv, L, D] at position `at`."""
        self.keys.write(at, k)
        self.values.write(at, v)

    def grown(self, capacity: int, held: int) -> "KeyValueBuffers":
        """Larger buffers that begin with the first `held` tokens of these."""
        return KeyValueBuffers(self.keys.grown(capacity, held), self.values.grown(capacity, held))

    def rows(self, rows: Sequence[int]) -> "KeyValueBuffers":
        """Buffers of the given batch rows."""
        return KeyValueBuffers(self.keys.rows(rows), self.values.rows(rows))

    def whole(self) -> tuple[Whole, Whole]:
        """All of both."""
        return self.keys.whole, self.values.whole

    def replaced(self, keys: mx.array, values: mx.array) -> "KeyValueBuffers":
        """Buffers of MLX arrays that a kernel has made from these.

        Raises CacheError for arrays of another shape or dtype, and where
        buffers are plain memory.
        """
        for new, old in zip((keys, values), self.whole(), strict=True):
            if not isinstance(old, mx.array):
                raise CacheError("the CPU backend's buffers are written in place: give no arrays")
            if (new.shape, new.dtype) != (old.shape, old.dtype):
                raise CacheError(
                    f"got a written buffer {new.shape} of {new.dtype}, "
                    f"expected {old.shape} of {old.dtype}"
                )
        return KeyValueBuffers(DeviceBuffer(keys), DeviceBuffer(values))

    def pending(self) -> list[mx.array]:
        """Arrays that may still have to be evaluated."""
        return self.keys.pending() + self.values.pending()
