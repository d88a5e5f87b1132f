"""Memory for keys and values that doubles as tokens come, up to a limit.

Knows how many tokens it has room for, not how many are held.
"""

import mlx.core as mx

from kvcache.config import MOST_TOKENS, Backend, HotDtype
from kvcache.errors import CacheError
from kvcache.unencoded.buffers import CpuBuffer, Layout, MlxBuffer, make_buffer


class GrowingBuffer:
    """`memory`, None before the first token: room for `first` tokens then, and `limit` at most."""

    def __init__(self, limit: int, first: int, dtype: HotDtype, backend: Backend) -> None:
        self.limit, self._first = limit, first
        self._dtype, self._backend = dtype, backend
        self.memory: MlxBuffer | CpuBuffer | None = None

    @property
    def layout(self) -> Layout | None:
        """B, Hkv and D, once known."""
        if self.memory is None:
            return None
        _, batch, heads, _, dim = self.memory.whole.shape
        return batch, heads, dim

    @property
    def capacity(self) -> int:
        """Tokens that there is room for."""
        return 0 if self.memory is None else self.memory.whole.shape[3]

    @property
    def token_bytes(self) -> int:
        """Bytes of a token; 0 before the first."""
        if self.layout is None:
            return 0
        batch, heads, dim = self.layout
        return 2 * batch * heads * dim * self._dtype.mx.size

    def filled(self) -> MlxBuffer | CpuBuffer:
        """The memory. Raises CacheError where there is none yet."""
        if self.memory is None:
            raise CacheError("the cache is empty: append keys and values, or reserve room, first")
        return self.memory

    def room(self, held: int, tokens: int, layout: Layout) -> MlxBuffer | CpuBuffer:
        """The memory, with room for `tokens` behind those that are held. Raises CacheError."""
        end, most = held + tokens, min(self.limit, MOST_TOKENS)
        if end > most:
            raise CacheError(
                f"{tokens} more tokens do not fit: the cache holds {held} of {most}; "
                "raise max_seq_len, or trim or clear it first"
            )
        if self.memory is None:
            self.memory = make_buffer(layout, self._grown(end), self._dtype, self._backend)
        elif end > self.capacity:
            self.memory = self.memory.grown(self._grown(end), held)
        return self.memory

    def replace(self, written: mx.array) -> None:
        """Take an array that a kernel has made of the memory. Raises CacheError for another."""
        self.memory = self.filled().replaced(written)

    def _grown(self, tokens: int) -> int:
        capacity = max(self.capacity, self._first)
        while capacity < tokens:
            capacity *= 2
        return min(capacity, self.limit, MOST_TOKENS)
