import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcache import Backend, BlockPool, CacheError, HotDtype

PAGE_BYTES = 2 * 3 * 7 * 16 * 2  # keys and values, heads, tokens, D, float16


def _pool(pages: int = 11, backend: Backend = Backend.AUTO) -> BlockPool:
    return BlockPool(pages, kv_heads=3, head_dim=16, page_tokens=7, backend=backend)


def test_bytes_are_as_stated_from_the_start() -> None:
    pool = _pool()
    assert (pool.page_bytes, pool.nbytes) == (PAGE_BYTES, 11 * PAGE_BYTES)
    for _ in range(11):
        pool.take()
    assert pool.nbytes == 11 * PAGE_BYTES


def test_pages_come_in_a_row_and_are_reused_before_new_ones_are_made() -> None:
    pool = _pool()
    assert [pool.take(), pool.take(), pool.take()] == [0, 1, 2]
    pool.give_back([1])
    assert pool.take(after=2) == 1
    pool.give_back([0, 2])
    assert pool.take(after=1) == 2
    stats = pool.stats()
    assert (stats.taken, stats.reused, stats.returned) == (5, 2, 3)
    assert (stats.made, stats.in_use, stats.high_water, stats.free) == (3, 2, 3, 9)
    assert stats.hit_rate == 2 / 5
    assert stats.as_dict()["hit_rate"] == 2 / 5


@pytest.mark.parametrize("backend", [Backend.AUTO, Backend.REFERENCE])
def test_prewarmed_pages_are_hits(backend: Backend) -> None:
    pool = _pool(backend=backend)
    assert pool.stats().hit_rate == 1.0
    pool.prewarm(4)
    pool.prewarm(2)
    assert (pool.stats().made, pool.free) == (4, 11)
    for _ in range(5):
        pool.take()
    assert (pool.stats().reused, pool.stats().made) == (4, 5)


@pytest.mark.parametrize("pages", [-1, 12])
def test_more_pages_than_there_are_cannot_be_prewarmed(pages: int) -> None:
    with pytest.raises(CacheError, match=f"got {pages} pages to prewarm, but the pool has 11"):
        _pool().prewarm(pages)


def test_a_page_is_free_when_the_last_holder_gives_it_back() -> None:
    pool = _pool()
    page = pool.take()
    pool.share([page])
    pool.give_back([page])
    assert (pool.references(page), pool.free) == (1, 10)
    pool.evict([page])
    assert (pool.references(page), pool.free, pool.stats().evicted) == (0, 11, 1)
    with pytest.raises(CacheError, match="page 0 is free already"):
        pool.give_back([page])
    with pytest.raises(CacheError, match="page 0 is free: it cannot be shared"):
        pool.share([page])


def test_an_exhausted_pool_says_so_with_its_figures() -> None:
    pool = _pool(2)
    pool.take()
    pool.take()
    with pytest.raises(
        CacheError,
        match=f"1 more pages are needed, 0 of 2 are free .7 tokens each, {2 * PAGE_BYTES} b",
    ):
        pool.take()


@pytest.mark.parametrize("size", ["pages", "kv_heads", "head_dim", "page_tokens"])
def test_sizes_below_one_are_refused(size: str) -> None:
    sizes = {"pages": 3, "kv_heads": 2, "head_dim": 16, "page_tokens": 5, size: 0}
    with pytest.raises(CacheError, match=f"got {size}=0, expected at least 1"):
        BlockPool(
            sizes["pages"],
            kv_heads=sizes["kv_heads"],
            head_dim=sizes["head_dim"],
            page_tokens=sizes["page_tokens"],
        )


@settings(max_examples=30)
@given(
    budget=st.integers(1, 400_000),
    heads=st.integers(1, 5),
    page=st.integers(1, 33),
    dtype=st.sampled_from(HotDtype),
)
def test_a_budget_is_filled_and_never_passed(
    budget: int, heads: int, page: int, dtype: HotDtype
) -> None:
    page_bytes = 2 * heads * page * 48 * dtype.mx.size
    if budget < page_bytes:
        with pytest.raises(CacheError, match=f"takes {page_bytes} bytes; give a larger"):
            BlockPool.for_budget(budget, kv_heads=heads, head_dim=48, page_tokens=page, dtype=dtype)
        return
    pool = BlockPool.for_budget(budget, kv_heads=heads, head_dim=48, page_tokens=page, dtype=dtype)
    assert pool.page_bytes == page_bytes
    assert budget - page_bytes < pool.nbytes <= budget


def test_a_budget_may_be_written_as_text() -> None:
    pool = BlockPool.for_budget("1MiB", kv_heads=2, head_dim=64)
    assert pool.shape.pages == 2**20 // (2 * 2 * 32 * 64 * 2) == 64


@pytest.mark.parametrize("backend", [Backend.AUTO, Backend.REFERENCE])
def test_a_copy_has_the_same_tokens_and_one_holder(backend: Backend) -> None:
    import mlx.core as mx

    pool = _pool(backend=backend)
    first, second = pool.take(), pool.take()
    tokens = np.random.default_rng(2).normal(size=(1, 3, 14, 16)).astype(np.float16)
    pool.store.write([range(14)], mx.array(tokens), mx.array(-tokens))
    pool.share([second])
    copy = pool.own_copy(second)
    assert (copy, pool.references(second), pool.references(copy)) == (2, 1, 1)
    assert pool.stats().copied == 1
    keys, values = pool.store.read([[first, copy]], 14)
    assert np.array_equal(np.asarray(keys), tokens)
    assert np.array_equal(np.asarray(values), -tokens)
