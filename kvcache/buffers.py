"""Where an unencoded cache keeps keys or values: [B, Hkv, capacity, D] in one piece.

Two kinds: MLX's own arrays for any device, and plain memory that the native CPU
kernels read and write in place. Neither knows how many of its tokens count.
"""

from collections.abc import Sequence
from typing import Protocol, Self

import mlx.core as mx
import numpy as np

from kvcache.config import Backend, HotDtype
from kvcache.native.library import Array

Shape = tuple[int, int, int, int]

# A whole buffer as a kernel takes it: an MLX array, or plain memory to write in place.
Whole = mx.array | Array


class Buffer(Protocol):
    """Memory for tokens of one kind."""

    @property
    def shape(self) -> Shape:
        """[B, Hkv, capacity, D]."""
        ...

    @property
    def whole(self) -> Whole:
        """All of the memory, [B, Hkv, capacity, D]."""
        ...

    def write(self, at: int, tokens: mx.array) -> None:
        """Put tokens [B, Hkv, L, D] at position `at`."""
        ...

    def read(self, count: int) -> mx.array:
        """The first `count` tokens."""
        ...

    def grown(self, capacity: int, held: int) -> Self:
        """A larger buffer that begins with the first `held` tokens of this one."""
        ...

    def rows(self, rows: Sequence[int]) -> Self:
        """A buffer of the given batch rows."""
        ...

    def pending(self) -> list[mx.array]:
        """Arrays that may still have to be evaluated."""
        ...


class DeviceBuffer:
    """Tokens in an MLX array, updated by slice assignment (in place once it is donated)."""

    def __init__(self, array: mx.array) -> None:
        self._array = array

    @property
    def shape(self) -> Shape:
        batch, heads, capacity, dim = self._array.shape
        return batch, heads, capacity, dim

    @property
    def whole(self) -> mx.array:
        return self._array

    def write(self, at: int, tokens: mx.array) -> None:
        self._array[:, :, at : at + tokens.shape[2]] = tokens.astype(self._array.dtype)

    def read(self, count: int) -> mx.array:
        return self._array[:, :, :count]

    def grown(self, capacity: int, held: int) -> "DeviceBuffer":
        batch, heads, _, dim = self.shape
        array = mx.zeros((batch, heads, capacity, dim), self._array.dtype)
        if held:
            array[:, :, :held] = self._array[:, :, :held]
        return DeviceBuffer(array)

    def rows(self, rows: Sequence[int]) -> "DeviceBuffer":
        return DeviceBuffer(self._array[mx.array(list(rows))])

    def pending(self) -> list[mx.array]:
        return [self._array]


class HostBuffer:
    """Tokens in plain memory; bfloat16 is kept as its 16 bits."""

    def __init__(self, memory: Array, dtype: HotDtype) -> None:
        self.memory = memory
        self._dtype = dtype

    @property
    def shape(self) -> Shape:
        batch, heads, capacity, dim = self.memory.shape
        return batch, heads, capacity, dim

    @property
    def whole(self) -> Array:
        return self.memory

    def write(self, at: int, tokens: mx.array) -> None:
        self.memory[:, :, at : at + tokens.shape[2]] = storable(tokens, self._dtype)

    def read(self, count: int) -> mx.array:
        tokens = mx.array(self.memory[:, :, :count])
        return tokens.view(mx.bfloat16) if self._dtype is HotDtype.BF16 else tokens

    def grown(self, capacity: int, held: int) -> "HostBuffer":
        batch, heads, _, dim = self.shape
        memory = np.zeros((batch, heads, capacity, dim), self.memory.dtype)
        memory[:, :, :held] = self.memory[:, :, :held]
        return HostBuffer(memory, self._dtype)

    def rows(self, rows: Sequence[int]) -> "HostBuffer":
        return HostBuffer(self.memory[list(rows)], self._dtype)

    def pending(self) -> list[mx.array]:
        return []


HOST_DTYPES = {HotDtype.F16: np.float16, HotDtype.BF16: np.uint16, HotDtype.F32: np.float32}


def host_array(tokens: mx.array) -> Array:
    """An evaluated view of `tokens`; bfloat16, which numpy has not, widened to float32."""
    if tokens.dtype == mx.bfloat16:
        tokens = tokens.astype(mx.float32)
    return np.asarray(tokens)


def storable(tokens: mx.array, dtype: HotDtype) -> Array:
    """What can be assigned to host memory of `dtype`."""
    if dtype is HotDtype.BF16:
        return np.asarray(tokens.astype(mx.bfloat16).view(mx.uint16))
    return host_array(tokens)


def make_buffer(shape: Shape, dtype: HotDtype, backend: Backend) -> DeviceBuffer | HostBuffer:
    """An empty buffer of the kind that a resolved backend works on."""
    if backend is Backend.CPU:
        return HostBuffer(np.zeros(shape, HOST_DTYPES[dtype]), dtype)
    return DeviceBuffer(mx.zeros(shape, dtype.mx))
