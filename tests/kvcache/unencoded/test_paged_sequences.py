"""Random lives of several sequences in one pool, against Python lists of tokens."""

import copy
from collections import Counter
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from kvcache import Backend, BlockPool, CacheError, HotDtype, PagedKVCache
from tests.kvcache import oracle

HKV, HQ, DIM, PAGE, PAGES = 2, 4, 16, 3, 13
MOST = 6  # sequences alive at a time

Token = npt.NDArray[np.float32]  # keys and values [2, Hkv, D]


@dataclass
class Naive:
    """The same rules over lists: `rows[b]` are the tokens held, `past` the evicted ones."""

    rows: list[list[Token]]
    past: int
    limit: int | None

    def size(self) -> int:
        return len(self.rows[0]) if self.rows else 0

    def overdue(self, held: int) -> bool:
        return self.limit is not None and held // PAGE + 1 > self.limit

    def append(self, tokens: list[list[Token]]) -> None:
        if not tokens[0]:
            return
        if not self.rows:
            self.rows = [[] for _ in tokens]
        while self.overdue(self.size()):
            self.rows = [row[PAGE:] for row in self.rows]
            self.past += PAGE
        for row, new in zip(self.rows, tokens, strict=True):
            row.extend(new)

    def fork(self, rows: list[int]) -> "Naive":
        return Naive([list(self.rows[row]) for row in rows], self.past, self.limit)


Pair = tuple[PagedKVCache, Naive]
AT = st.integers(0, 999)  # which live sequence, modulo their number
LENGTH = st.integers(0, 8)


class Sequences(RuleBasedStateMachine):
    """Appends, forks, trims, evictions and ends in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(5)
        self.live: list[Pair] = []

    @initialize(backend=st.sampled_from([Backend.AUTO, Backend.REFERENCE]))
    def start(self, backend: Backend) -> None:
        self.pool = BlockPool(
            PAGES,
            kv_heads=HKV,
            head_dim=DIM,
            page_tokens=PAGE,
            dtype=HotDtype.F32,
            backend=backend,
        )

    @precondition(lambda self: len(self.live) < MOST)
    @rule(limit=st.sampled_from([None, 1, 2, 2, 3, 4]), length=LENGTH, batch=st.integers(1, 3))
    def create(self, limit: int | None, length: int, batch: int) -> None:
        self.live.append((PagedKVCache(self.pool, max_pages=limit), Naive([], 0, limit)))
        self._append(self.live[-1], length, batch)

    @precondition(lambda self: self.live)
    @rule(at=AT, length=LENGTH)
    def append(self, at: int, length: int) -> None:
        self._append(self._at(at), length, 1)

    @precondition(lambda self: self.live)
    @rule(at=AT)
    def decode(self, at: int) -> None:
        self._append(self._at(at), 1, 2)

    @precondition(lambda self: 0 < len(self.live) < MOST)
    @rule(at=AT, rows=st.lists(AT, min_size=1, max_size=3))
    def fork(self, at: int, rows: list[int]) -> None:
        cache, naive = self._at(at)
        if not naive.rows:
            self.live.append((copy.deepcopy(cache), naive.fork([])))
            return
        chosen = [row % len(naive.rows) for row in rows]
        self.live.append((cache.fork(chosen), naive.fork(chosen)))

    @precondition(lambda self: self.live)
    @rule(at=AT, rows=st.lists(AT, min_size=1, max_size=3))
    def filter(self, at: int, rows: list[int]) -> None:
        cache, naive = self._at(at)
        if naive.rows:
            chosen = [row % len(naive.rows) for row in rows]
            cache.filter(chosen)
            naive.rows = naive.fork(chosen).rows

    @precondition(lambda self: self.live)
    @rule(at=AT, count=st.integers(0, 7))
    def trim(self, at: int, count: int) -> None:
        cache, naive = self._at(at)
        assert cache.trim(count) == min(count, naive.size())
        naive.rows = [row[: max(0, len(row) - count)] for row in naive.rows]

    @precondition(lambda self: self.live)
    @rule(at=AT, dropped=st.booleans())
    def end(self, at: int, dropped: bool) -> None:
        cache, naive = self._at(at)
        if dropped:
            del self.live[at % len(self.live)]
            return
        cache.clear()
        naive.rows, naive.past = [], 0

    @rule(pages=st.integers(0, PAGES))
    def prewarm(self, pages: int) -> None:
        self.pool.prewarm(pages)

    @precondition(lambda self: self.live)
    @rule(at=AT, length=st.integers(1, 4))
    def attend(self, at: int, length: int) -> None:
        cache, naive = self._at(at)
        length = min(length, naive.size())
        if not length:
            return
        batch = len(naive.rows)
        q = self.rng.normal(size=(batch, HQ, length, DIM)).astype(np.float32)
        k, v = np.array(naive.rows, np.float64).transpose(2, 0, 3, 1, 4)
        visible = oracle.causal(batch, length, naive.size())
        want = oracle.attention(q.astype(np.float64), k, v, 0.25, visible)
        got = cache.attend_held(mx.array(q), scale=0.25)
        np.testing.assert_allclose(np.asarray(got), want, atol=3e-6)

    def _at(self, at: int) -> Pair:
        return self.live[at % len(self.live)]

    def _append(self, pair: Pair, length: int, batch: int) -> None:
        cache, naive = pair
        new = self.rng.normal(size=(len(naive.rows) or batch, length, 2, HKV, DIM))
        k, v = (mx.array(new[:, :, i].swapaxes(1, 2).astype(np.float32)) for i in range(2))
        before, lacking = self.pool.stats(), self._lacking(pair, len(new), length)
        if lacking > 0:
            with pytest.raises(CacheError, match=f"exhausted: {before.free + lacking} more"):
                cache.append(k, v)
            assert self.pool.stats() == before
        else:
            cache.append(k, v)
            naive.append([list(row) for row in new.astype(np.float32)])

    def _lacking(self, pair: Pair, rows: int, length: int) -> int:
        """Pages that an append lacks, found by doing it step by step with the holders' counts."""
        holders, (cache, naive) = self._holders(), pair
        tables = [list(table) for table in cache._tables.rows] or [[] for _ in range(rows)]
        free, held = PAGES - len(holders), naive.size()
        while length and naive.overdue(held):
            held -= PAGE
            for table in tables:
                holders[table.pop(0)] -= 1
        free += sum(not count for count in holders.values())
        for table in tables if length else []:
            if held % PAGE and holders[table[-1]] > 1:
                holders[table[-1]] -= 1
                free -= 1
            free -= len(range(0, held + length, PAGE)) - len(table)
        return -free

    def _holders(self) -> Counter[int]:
        return Counter(
            page for cache, _ in self.live for table in cache._tables.rows for page in table
        )

    @invariant()
    def holds_what_the_lists_hold(self) -> None:
        for cache, naive in self.live:
            assert (cache.size(), cache.offset) == (naive.size(), naive.past + naive.size())
            assert cache.is_trimmable() == (cache.max_pages is None)
            if naive.size():
                held = np.stack([np.asarray(cache.keys()), np.asarray(cache.values())])
                want = np.array(naive.rows).transpose(2, 0, 3, 1, 4)
                assert np.array_equal(held, want)

    @invariant()
    def no_page_is_lost_or_held_wrongly(self) -> None:
        held = self._holders()
        counted = {page: self.pool.references(page) for page in range(PAGES)}
        assert {page: count for page, count in counted.items() if count} == held
        stats = self.pool.stats()
        assert stats.in_use == len(held) == PAGES - self.pool.free
        assert stats.shared == sum(count > 1 for count in held.values())
        assert stats.taken - stats.returned == stats.in_use
        assert stats.in_use <= stats.high_water <= stats.made <= PAGES


TestSequences = Sequences.TestCase
TestSequences.settings = settings(max_examples=80, stateful_step_count=40)
