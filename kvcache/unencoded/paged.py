"""A cache whose tokens lie in pages of a pool that it shares with other sequences.

For serving: sequences take pages as they grow and give them back, forks share a
prefix until one of them writes into it, and all of them together never pass the
pool's bytes. Keys arrive after RoPE; nothing is encoded.
Source: Kwon et al., PagedAttention (arXiv 2309.06180).
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Self

import mlx.core as mx
import numpy as np

from kvcache.attention import attend_on_cpu, attend_unencoded
from kvcache.checks import (
    check_finite,
    check_finite_queries,
    check_queries,
    check_tokens,
    scored,
)
from kvcache.config import Backend, HotDtype
from kvcache.errors import CacheError
from kvcache.given import array, flag, instance, integer
from kvcache.native.structs import HEAD_DIM_STEP
from kvcache.reference import Mask
from kvcache.sight import Sight
from kvcache.stats import CacheStats
from kvcache.unencoded.block_pool import BlockPool
from kvcache.unencoded.page_store import CpuPages
from kvcache.unencoded.page_tables import PageTables
from kvcache.unencoded.saved_unencoded import Paged, PagedState


class PagedKVCache:
    """One layer of one sequence, or of a batch of equally long ones.

    Follows mlx-lm's cache contract and adds `append`, `attend_held`, `attend`
    and `fork`. A deep copy is a fork. Pages go back to the pool by `trim`,
    `clear`, or when the cache is dropped.

    max_pages: pages of each row at most while tokens come one by one. Before an
    append the oldest pages beyond it are let go; several tokens appended
    together all stay until the next append, so that each sees the others.
    Distances stay right, but the first tokens go too: for endless chats take
    TwoTierKVCache, which keeps them as sinks.
    validate: refuse NaN, infinite and too large tokens; by default only the CPU
    backend does (see DynamicKVCache).

    On a device, evaluate one sequence's step before the next one appends: MLX
    copies the whole pool for an append while a pending step still reads it.
    """

    def __init__(
        self, pool: BlockPool, *, max_pages: int | None = None, validate: bool | None = None
    ) -> None:
        self.pool = instance("pool", pool, BlockPool)
        self.max_pages = None if max_pages is None else integer("max_pages", max_pages, least=1)
        self.offset = 0
        self._evicted = 0
        self._on_cpu = pool.backend is Backend.CPU
        self._validate = self._on_cpu if validate is None else flag("validate", validate)
        self._tables = PageTables(pool)

    def __repr__(self) -> str:
        return f"PagedKVCache({self.pool.dtype.value}, {self.stats()})"

    # -- what attention needs --

    def append(self, k: mx.array, v: mx.array) -> None:
        """Add L tokens: k and v are [B, Hkv, L, D].

        Raises CacheError, and leaves cache and pool as they were, for shapes
        that do not fit, a pool without enough free pages, or what `validate`
        refuses.
        """
        shape, (k, v) = self.pool.shape, self._new(k, v)
        if self._validate:
            check_finite(k, v, self.pool.dtype, on_cpu=self._on_cpu)
        elif self._on_cpu:
            mx.eval(k, v)  # What computes them may fail: before pages are taken.
        batch, _, length, _ = k.shape
        if not length:
            return
        overdue = self._overdue()
        self._tables.make_room(batch, self.size(), length, overdue)
        self._evicted += overdue * shape.page_tokens
        self.pool.store.write(self._tables.spans(self.size(), length), k, v)
        self.offset += length

    def attend_held(self, q: mx.array, *, scale: float, mask: Mask = "causal") -> mx.array:
        """Attend q [B, Hq, L, D] to the held tokens; its last row is the newest token."""
        q = array("q", q)
        scale, mask = self._scored(q, scale, mask, len(self._tables.rows), self.size())
        return self._attend(q, scale, mask)

    def attend(
        self, q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Mask = "causal"
    ) -> mx.array:
        """`append`, then `attend_held`; what is refused changes nothing."""
        q, (k, v) = array("q", q), self._new(k, v)
        # As many as will be held: old pages may go first.
        held = self.size() - self._overdue() * self.pool.shape.page_tokens + k.shape[2]
        scale, mask = self._scored(q, scale, mask, k.shape[0], held)
        self.append(k, v)
        return self._attend(q, scale, mask)

    def _new(self, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        k, v, shape = array("k", k), array("v", v), self.pool.shape
        check_tokens(k, v, (len(self._tables.rows) or None, shape.kv_heads, shape.head_dim))
        return k, v

    def _scored(
        self, q: mx.array, scale: float, mask: Mask, rows: int, held: int
    ) -> tuple[float, Mask]:
        """Scale and mask of queries that are known to fit."""
        check_queries(q, (rows, self.pool.shape.kv_heads, self.pool.shape.head_dim), held)
        if self._validate:
            check_finite_queries(q)
        return scored(scale, mask, (*q.shape[:3], held))

    def _attend(self, q: mx.array, scale: float, mask: Mask) -> mx.array:
        shape, store = self.pool.shape, self.pool.store
        causal = q.shape[2] == 1 if mask is None else isinstance(mask, str)
        if causal and isinstance(store, CpuPages) and shape.head_dim % HEAD_DIM_STEP == 0:
            out = [
                self._attend_row(q[row : row + 1], store, table, scale)
                for row, table in enumerate(self._tables.rows)
            ]
            return mx.concatenate(out) if len(out) > 1 else out[0]
        keys, values = self._read()
        return attend_unencoded(q, keys, values, scale=scale, mask=mask, backend=self.pool.backend)

    def _attend_row(
        self, q: mx.array, store: CpuPages, table: Sequence[int], scale: float
    ) -> mx.array:
        keys, values, start = store.row(table)
        # What lies before the row's first page in the pool is hidden as if it were padding.
        before = np.array([start], np.int32)
        return attend_on_cpu(q, keys, values, held=start + self.size(), scale=scale, padding=before)

    # -- sequences --

    def fork(self, rows: Sequence[int] | None = None) -> "PagedKVCache":
        """A cache of the same tokens that shares all pages until one of the two writes.

        rows: which batch rows the fork has, repeats allowed (several answers to
        one prompt); all by default.
        """
        other = PagedKVCache(self.pool, max_pages=self.max_pages, validate=self._validate)
        other._tables.share(self._tables, rows)
        other.offset, other._evicted = self.offset, self._evicted
        return other

    def __copy__(self) -> "PagedKVCache":
        return self.fork()

    def __deepcopy__(self, memo: dict[int, Any]) -> "PagedKVCache":
        return self.fork()

    def filter(self, rows: Sequence[int]) -> None:
        """Keep only the given batch rows."""
        kept = PageTables(self.pool)
        kept.share(self._tables, rows)
        self._tables.clear()
        self._tables = kept

    def clear(self) -> None:
        """Forget all tokens and give their pages back."""
        self._tables.clear()
        self.offset = self._evicted = 0

    # -- what is held --

    def keys(self) -> mx.array:
        """The held keys [B, Hkv, size, D], oldest first."""
        return self._read()[0]

    def values(self) -> mx.array:
        """The held values [B, Hkv, size, D], oldest first."""
        return self._read()[1]

    def size(self) -> int:
        """Tokens held: all but the evicted ones."""
        return self.offset - self._evicted

    def empty(self) -> bool:
        """Whether no token is held."""
        return self.size() == 0

    def stats(self) -> CacheStats:
        """Tokens and bytes; every held token is hot, shared pages count in each cache."""
        page = self.pool.shape.page_tokens
        held = len(self._tables.rows) * self.size() * self.pool.page_bytes // page
        return CacheStats(
            total=self.offset,
            sink=0,
            hot=self.size(),
            cold=0,
            evicted=self._evicted,
            sink_bytes=0,
            hot_bytes=held,
            cold_bytes=0,
            allocated_bytes=self.nbytes,
            fp16_bytes=held * HotDtype.F16.mx.size // self.pool.dtype.mx.size,
            key_bytes=held // 2,
            value_bytes=held // 2,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the pages that this cache holds, alone or with others."""
        return len(self._tables.pages()) * self.pool.page_bytes

    # -- mlx-lm's cache contract --

    def update_and_fetch(self, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        """Append, then return all held keys and values [B, Hkv, size, D]."""
        self.append(k, v)
        return self._read()

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> Mask:
        """The mask of `length` tokens about to be appended."""
        length = integer("length", length, least=1)
        if window_size is not None:
            window_size = integer("window_size", window_size, least=1)
        if window_size is None and not return_array:
            return None if length == 1 else "causal"
        let_go = self._overdue() * self.pool.shape.page_tokens
        return Sight.of_all(length, self.size() - let_go + length).full(window_size)

    def is_trimmable(self) -> bool:
        """Whether any number of tokens can be trimmed: not where pages may be let go."""
        return self.max_pages is None

    def trim(self, n: int) -> int:
        """Drop the newest `n` tokens and their pages; returns how many were dropped."""
        dropped = min(max(integer("n", n, least=None), 0), self.size())
        self.offset -= dropped
        self._tables.cut(self.size())
        return dropped

    def pending(self) -> list[mx.array]:
        """Arrays to evaluate before the next step."""
        return self.pool.store.pending()

    @property
    def state(self) -> PagedState:
        """Held keys, held values, and what makes a pool and a sequence like these, with a sum."""
        tokens = (None, None) if self.empty() else self._read()
        pool = self.pool
        return Paged(tokens, self.offset, self.max_pages, pool.shape, pool.dtype).dump()

    @state.setter
    def state(self, value: PagedState) -> None:
        self._take(Paged.of(value))

    @classmethod
    def from_state(cls, state: PagedState) -> Self:
        """A saved cache in a pool of its own, as large as the saved one's.

        Raises CacheError for a state of something else, or a damaged one.
        """
        saved = Paged.of(state)
        pool = BlockPool(**asdict(saved.shape), dtype=saved.dtype)
        cache = cls(pool, max_pages=saved.max_pages)
        cache._take(saved)
        return cache

    def _take(self, saved: Paged) -> None:
        self.clear()
        keys, values = saved.tokens
        if keys is not None and values is not None:
            self.append(keys, values)
        self._evicted, self.offset = saved.offset - self.size(), saved.offset

    def _overdue(self) -> int:
        """Pages of each row that the next append lets go, so that its first token fits."""
        if self.max_pages is None:
            return 0
        return max(0, self._tables.pages_for(self.size() + 1) - self.max_pages)

    def _read(self) -> tuple[mx.array, mx.array]:
        if self.empty():
            raise CacheError("the cache is empty: append keys and values first")
        return self.pool.store.read(self._tables.rows, self.size())
