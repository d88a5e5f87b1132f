"""Random lives of several sequences in one pool, against Python lists of tokens."""

import copy
from collections import Counter
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
)

from kvcache import Backend, BlockPool, CacheError, HotDtype, PagedKVCache
from tests.kvcache import oracle

HKV, HQ, DIM, PAGE, PAGES = 2, 4, 16, 3, 19

Token = npt.NDArray[np.float32]  # keys and values [2, Hkv, D]


@dataclass
class Naive:
    """The same rules over lists: `rows[b]` are the tokens held, `past` the evicted ones."""

    rows: list[list[Token]]
    past: int
    limit: int | None

    def size(self) -> int:
        return len(self.rows[0]) if self.rows else 0

    def append(self, tokens: list[list[Token]]) -> None:
        if not self.rows:
            self.rows = [[] for _ in tokens]
        while self.limit is not None and self.size() // PAGE + 1 > self.limit:
            self.rows = [row[PAGE:] for row in self.rows]
            self.past += PAGE
        for row, new in zip(self.rows, tokens, strict=True):
            row.extend(new)

    def fork(self, rows: list[int]) -> "Naive":
        return Naive([list(self.rows[row]) for row in rows], self.past, self.limit)


Pair = tuple[PagedKVCache, Naive]
Key = int  # hypothesis keeps what a bundle held, so bundles name caches and do not hold them


class Sequences(RuleBasedStateMachine):
    """Appends, forks, trims, evictions and ends in any order."""

    keys: Bundle[Key] = Bundle("keys")

    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(5)
        self.live: dict[Key, Pair] = {}
        self.made = 0

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

    def _keep(self, pair: Pair) -> Key:
        self.made += 1
        self.live[self.made] = pair
        return self.made

    @rule(target=keys, limit=st.none() | st.integers(1, 4))
    def create(self, limit: int | None) -> Key:
        return self._keep((PagedKVCache(self.pool, max_pages=limit), Naive([], 0, limit)))

    @rule(key=keys, length=st.integers(0, 8), batch=st.integers(1, 3))
    def append(self, key: Key, length: int, batch: int) -> None:
        cache, naive = self.live[key]
        batch = len(naive.rows) or batch
        new = self.rng.normal(size=(batch, length, 2, HKV, DIM)).astype(np.float32)
        k, v = (mx.array(new[:, :, i].swapaxes(1, 2)) for i in range(2))
        before = self.pool.stats()
        worst = batch * (-(-length // PAGE) + 1)
        try:
            cache.append(k, v)
        except CacheError:
            assert self.pool.free < worst
            assert self.pool.stats() == before
            return
        if length:
            naive.append([list(row) for row in new])

    @rule(target=keys, key=keys, data=st.data())
    def fork(self, key: Key, data: st.DataObject) -> Key:
        cache, naive = self.live[key]
        count = len(naive.rows)
        if not count:
            return self._keep((copy.deepcopy(cache), naive.fork([])))
        rows = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=3))
        return self._keep((cache.fork(rows), naive.fork(rows)))

    @rule(key=keys, data=st.data())
    def filter(self, key: Key, data: st.DataObject) -> None:
        cache, naive = self.live[key]
        if naive.rows:
            rows = data.draw(st.lists(st.integers(0, len(naive.rows) - 1), min_size=1, max_size=3))
            cache.filter(rows)
            naive.rows = naive.fork(rows).rows

    @rule(key=keys, count=st.integers(0, 12))
    def trim(self, key: Key, count: int) -> None:
        cache, naive = self.live[key]
        assert cache.trim(count) == min(count, naive.size())
        naive.rows = [row[: max(0, len(row) - count)] for row in naive.rows]

    @rule(key=keys)
    def clear(self, key: Key) -> None:
        cache, naive = self.live[key]
        cache.clear()
        naive.rows, naive.past = [], 0

    @rule(key=consumes(keys))
    def drop(self, key: Key) -> None:
        del self.live[key]

    @rule(pages=st.integers(0, PAGES))
    def prewarm(self, pages: int) -> None:
        self.pool.prewarm(pages)

    @rule(key=keys, length=st.integers(1, 4))
    def attend(self, key: Key, length: int) -> None:
        cache, naive = self.live[key]
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

    @invariant()
    def holds_what_the_lists_hold(self) -> None:
        for cache, naive in self.live.values():
            assert (cache.size(), cache.offset) == (naive.size(), naive.past + naive.size())
            assert cache.is_trimmable() == (naive.past == 0)
            if naive.size():
                held = np.stack([np.asarray(cache.keys()), np.asarray(cache.values())])
                want = np.array(naive.rows).transpose(2, 0, 3, 1, 4)
                assert np.array_equal(held, want)

    @invariant()
    def no_page_is_lost_or_held_wrongly(self) -> None:
        held = Counter(
            page
            for cache, _ in self.live.values()
            for table in cache._tables.rows
            for page in table
        )
        counted = {page: self.pool.references(page) for page in range(PAGES)}
        assert {page: count for page, count in counted.items() if count} == held
        stats = self.pool.stats()
        assert stats.in_use == len(held) == PAGES - self.pool.free
        assert stats.shared == sum(count > 1 for count in held.values())
        assert stats.taken - stats.returned == stats.in_use
        assert stats.in_use <= stats.high_water <= stats.made <= PAGES


TestSequences = Sequences.TestCase
TestSequences.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
