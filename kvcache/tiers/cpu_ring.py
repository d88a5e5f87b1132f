"""Unencoded keys and values in a ring of CPU memory, written and read in place.

Token number u lies at u mod capacity. The system gives pages as they are
touched, so the ring is as large as its plan from the beginning. Copies read the same memory until
one of them writes, which then takes memory of its own.
"""

from copy import copy
from weakref import WeakSet

import mlx.core as mx

from kvcache.config import HotDtype
from kvcache.cpu_memory import DTYPES, storable, zeros
from kvcache.native import structs
from kvcache.native.structs import Array, address, strided
from kvcache.snapshot import Tokens, joined, runs

# bfloat16 as its bits.
CpuTokens = Tokens[Array]


class CpuRing:
    """Up to `capacity` tokens of shape [B, Hkv, _, D]."""

    def __init__(self, capacity: int, shape: tuple[int, int, int], dtype: HotDtype) -> None:
        self.capacity, self.shape = capacity, shape
        self._end = 0
        batch, heads, dim = shape
        # An empty ring has an address too.
        size = batch, heads, max(capacity, 1), dim
        self._memory = Tokens(*(zeros(size, DTYPES[dtype]) for _ in "kv"))
        # All that read it, this one too, where there are others.
        self._readers: WeakSet[CpuRing] | None = None

    def shared(self) -> "CpuRing":
        """A copy that costs nothing before one of the two writes."""
        made = copy(self)
        self._readers = made._readers = self._readers or WeakSet([self])
        self._readers.add(made)
        return made

    def write(self, number: int, tokens: CpuTokens) -> bool:
        """Put at most `capacity` tokens at numbers number .. number + L.

        Returns whether they are in other memory than before, as others read that.
        """
        moved = self.reserve(number, number + tokens.length)
        for run in runs(number, tokens.length, [self.capacity]):
            into = self._memory.cut(run.at, run.stop)
            new = tokens.cut(run.done, run.done + into.length)
            into.keys[...], into.values[...] = new
        return moved

    def read(self, number: int, count: int) -> CpuTokens:
        """`count` tokens from a number; in place where they lie side by side."""
        found = [self._memory.cut(run.at, run.stop) for run in runs(number, count, [self.capacity])]
        return joined(found or [self._memory.cut(0, 0)])

    def reserve(self, start: int, end: int) -> bool:
        """Tokens [start, end) are written, here or by a kernel. Returns what `write` does."""
        moved = self._readers is not None and start < end and self._leave(self._readers)
        if end > self._end:
            self._end = end
        return moved

    def _leave(self, readers: "WeakSet[CpuRing]") -> bool:
        """Have memory that nobody else reads; returns whether it is another."""
        readers.discard(self)
        self._readers = None
        if not readers:
            return False
        held = self._memory.cut(0, self.allocated)
        self._memory = Tokens(*(zeros(each.shape, each.dtype) for each in self._memory))
        into = self._memory.cut(0, self.allocated)
        into.keys[...], into.values[...] = held
        return True

    @property
    def place(self) -> int:
        """Where it lies: of rings that share memory the same."""
        return address(self._memory.keys)

    @property
    def allocated(self) -> int:
        """Tokens that the system has given memory for: those that were ever written."""
        return min(self._end, self.capacity)

    @property
    def struct(self) -> structs.Ring:
        """As the kernels take it."""
        keys, values = map(strided, self._memory)
        return structs.Ring(keys, values, self.capacity)


def from_mlx(tokens: Tokens[mx.array], dtype: HotDtype) -> CpuTokens:
    """In a hot dtype; what is too large for it becomes infinite."""
    return Tokens(*(storable(array, dtype) for array in tokens))


def to_mlx(tokens: CpuTokens, dtype: HotDtype) -> Tokens[mx.array]:
    """Copied."""
    copies = map(mx.array, tokens)
    return Tokens(*(copy.view(mx.bfloat16) if dtype is HotDtype.BF16 else copy for copy in copies))
