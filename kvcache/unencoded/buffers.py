"""Where an unencoded cache keeps keys and values: [2, B, Hkv, capacity, D] in one piece.

Keys come first, values second, so that whoever has both in one array writes them
at once. Two kinds: an MLX array for any device, and CPU memory that the kernels
read and write in place. Neither knows how many of its tokens count.
"""

from collections.abc import Sequence

import mlx.core as mx

from kvcache.config import Backend, HotDtype
from kvcache.cpu_memory import DTYPES, storable, zeros
from kvcache.errors import CacheError
from kvcache.native.structs import Array

# B, Hkv and D.
Layout = tuple[int, int, int]

# A whole buffer as a kernel takes it: an MLX array, or CPU memory to write in place.
Whole = mx.array | Array

_ROOM_AXIS = 3


class MlxBuffer:
    """Tokens in an MLX array, updated by slice assignment (in place once it is donated)."""

    def __init__(self, array: mx.array) -> None:
        self.whole = array

    @classmethod
    def make(cls, layout: Layout, capacity: int, dtype: HotDtype) -> "MlxBuffer":
        """Room for `capacity` tokens."""
        batch, heads, dim = layout
        return cls(mx.zeros((2, batch, heads, capacity, dim), dtype.mx))

    def write(self, at: int, k: mx.array, v: mx.array) -> None:
        """Put k and v [B, Hkv, L, D] at position `at`."""
        for kind, tokens in enumerate((k, v)):
            span = slice(at, at + tokens.shape[2])
            self.whole[kind, :, :, span] = tokens.astype(self.whole.dtype)

    def write_joined(self, at: int, kv: mx.array) -> None:
        """Put kv [2, B, Hkv, L, D] at position `at`, in one launch."""
        self.whole[:, :, :, at : at + kv.shape[_ROOM_AXIS]] = kv.astype(self.whole.dtype)

    def keys(self, count: int) -> mx.array:
        """The first `count` keys [B, Hkv, count, D]."""
        return self.whole[0, :, :, :count]

    def values(self, count: int) -> mx.array:
        """The first `count` values [B, Hkv, count, D]."""
        return self.whole[1, :, :, :count]

    def grown(self, capacity: int, held: int) -> "MlxBuffer":
        """A larger buffer that begins with the first `held` tokens of this one."""
        shape = list(self.whole.shape)
        shape[_ROOM_AXIS] = capacity
        array = mx.zeros(shape, self.whole.dtype)
        array[:, :, :, :held] = self.whole[:, :, :, :held]
        return MlxBuffer(array)

    def rows(self, rows: Sequence[int]) -> "MlxBuffer":
        """A buffer of the given batch rows."""
        return MlxBuffer(mx.take(self.whole, mx.array(list(rows)), axis=1))

    def replaced(self, array: mx.array) -> "MlxBuffer":
        """A buffer of an array that a kernel has made from this one.

        Raises CacheError for an array of another shape or dtype.
        """
        old = self.whole
        if (array.shape, array.dtype) != (old.shape, old.dtype):
            raise CacheError(
                f"got a written buffer {array.shape} of {array.dtype}, "
                f"expected {old.shape} of {old.dtype}"
            )
        return MlxBuffer(array)

    def pending(self) -> list[mx.array]:
        """Arrays that may still have to be evaluated."""
        return [self.whole]


class CpuBuffer:
    """Tokens in CPU memory; bfloat16 is kept as its 16 bits."""

    def __init__(self, memory: Array, dtype: HotDtype) -> None:
        self.whole = memory
        self._dtype = dtype

    @classmethod
    def make(cls, layout: Layout, capacity: int, dtype: HotDtype) -> "CpuBuffer":
        """Room for `capacity` tokens."""
        batch, heads, dim = layout
        return cls(zeros((2, batch, heads, capacity, dim), DTYPES[dtype]), dtype)

    def write(self, at: int, k: mx.array, v: mx.array) -> None:
        """Put k and v [B, Hkv, L, D] at position `at`."""
        for kind, tokens in enumerate((k, v)):
            span = slice(at, at + tokens.shape[2])
            self.whole[kind, :, :, span] = storable(tokens, self._dtype)

    def write_joined(self, at: int, kv: mx.array) -> None:
        """Put kv [2, B, Hkv, L, D] at position `at`."""
        span = slice(at, at + kv.shape[_ROOM_AXIS])
        self.whole[:, :, :, span] = storable(kv, self._dtype)

    def keys(self, count: int) -> mx.array:
        """The first `count` keys [B, Hkv, count, D], copied."""
        return self._read(0, count)

    def values(self, count: int) -> mx.array:
        """The first `count` values [B, Hkv, count, D], copied."""
        return self._read(1, count)

    def grown(self, capacity: int, held: int) -> "CpuBuffer":
        """A larger buffer that begins with the first `held` tokens of this one."""
        _, batch, heads, _, dim = self.whole.shape
        buffer = CpuBuffer.make((batch, heads, dim), capacity, self._dtype)
        buffer.whole[:, :, :, :held] = self.whole[:, :, :, :held]
        return buffer

    def rows(self, rows: Sequence[int]) -> "CpuBuffer":
        """A buffer of the given batch rows."""
        return CpuBuffer(self.whole[:, list(rows)], self._dtype)

    def replaced(self, array: mx.array) -> "CpuBuffer":
        """Never: raises CacheError."""
        raise CacheError(
            f"got an array {array.shape}, but the CPU backend's buffers are written in place: "
            "give no arrays"
        )

    def pending(self) -> list[mx.array]:
        """None: CPU memory is written at once."""
        return []

    def _read(self, kind: int, count: int) -> mx.array:
        tokens = mx.array(self.whole[kind, :, :, :count])
        return tokens.view(mx.bfloat16) if self._dtype is HotDtype.BF16 else tokens


def make_buffer(
    layout: Layout, capacity: int, dtype: HotDtype, backend: Backend
) -> MlxBuffer | CpuBuffer:
    """An empty buffer of the kind that a resolved backend works on."""
    kind = CpuBuffer if backend is Backend.CPU else MlxBuffer
    return kind.make(layout, capacity, dtype)
