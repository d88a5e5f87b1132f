import copy
import gc
import threading

import mlx.core as mx
import numpy as np
import pytest

from kvcache import Backend, BlockPool, CacheError, DynamicKVCache, HotDtype, PagedKVCache, attend
from tests.kvcache import oracle
from tests.kvcache.cache_inputs import BACKENDS, DIM, HKV, MISFITS, needs_kernels, queries, tokens

PAGE = 5


def _pool(
    pages: int = 23, backend: Backend = Backend.AUTO, dtype: HotDtype = HotDtype.F32
) -> BlockPool:
    return BlockPool(
        pages, kv_heads=HKV, head_dim=DIM, page_tokens=PAGE, backend=backend, dtype=dtype
    )


def _attended(q: mx.array, k: mx.array, v: mx.array) -> np.ndarray:
    q64, k64, v64 = (np.asarray(array).astype(np.float64) for array in (q, k, v))
    visible = oracle.causal(q.shape[0], q.shape[2], k.shape[2])
    return oracle.attention(q64, k64, v64, 0.25, visible)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("steps", [(13,), (1,) * 13, (4, 1, 8), (5, 5, 3)])
def test_attention_does_not_depend_on_how_tokens_arrive(
    steps: tuple[int, ...], batch: int, backend: Backend
) -> None:
    k, v = tokens(13, batch=batch)
    q = queries(13, batch=batch)
    cache = PagedKVCache(_pool(backend=backend))
    start, outputs = 0, []
    for length in steps:
        span = slice(start, start + length)
        outputs.append(attend(q[:, :, span], k[:, :, span], v[:, :, span], cache=cache, scale=0.25))
        start += length
    np.testing.assert_allclose(
        np.asarray(mx.concatenate(outputs, axis=2)), _attended(q, k, v), atol=2e-6
    )
    assert mx.array_equal(cache.keys(), k)
    assert mx.array_equal(cache.values(), v)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sequences_whose_pages_lie_between_each_other_do_not_mix(backend: Backend) -> None:
    pool = _pool(backend=backend)
    caches = [PagedKVCache(pool) for _ in range(3)]
    held = [tokens(17, seed=seed) for seed in range(3)]
    q = queries(2)
    for at in range(17):
        for cache, (k, v) in zip(caches, held, strict=True):
            cache.append(k[:, :, at : at + 1], v[:, :, at : at + 1])
    for cache, (k, v) in zip(caches, held, strict=True):
        assert mx.array_equal(cache.keys(), k)
        out = cache.attend_held(q, scale=0.25)
        np.testing.assert_allclose(np.asarray(out), _attended(q, k, v), atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_are_honoured(backend: Backend) -> None:
    k, v = tokens(9)
    q = queries(4)
    cache = PagedKVCache(_pool(backend=backend))
    cache.append(k, v)
    hidden = mx.array(np.arange(9) % 3 == 1)[None, None, None]
    got = cache.attend_held(q, scale=0.25, mask=mx.broadcast_to(hidden, (1, 1, 4, 9)))
    some = mx.array([1, 4, 7])
    q64, k64, v64 = (np.asarray(a).astype(np.float64) for a in (q, k[:, :, some], v[:, :, some]))
    want = oracle.attention(q64, k64, v64, 0.25, np.ones((1, 4, 3), np.bool_))
    np.testing.assert_allclose(np.asarray(got), want, atol=2e-6)


def test_a_head_dimension_that_the_kernels_do_not_take_is_attended_in_plain_mlx() -> None:
    rng = np.random.default_rng(3)
    k, v = (mx.array(rng.normal(size=(1, 2, 7, 11)).astype(np.float32)) for _ in range(2))
    q = mx.array(rng.normal(size=(1, 4, 7, 11)).astype(np.float32))
    pool = BlockPool(7, kv_heads=2, head_dim=11, page_tokens=3, dtype=HotDtype.F32)
    got = PagedKVCache(pool).attend(q, k, v, scale=0.25)
    np.testing.assert_allclose(np.asarray(got), _attended(q, k, v), atol=2e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", list(HotDtype))
@pytest.mark.parametrize("given", [mx.float16, mx.bfloat16, mx.float32])
def test_every_dtype_is_held_as_the_pool_says(
    given: mx.Dtype, dtype: HotDtype, backend: Backend
) -> None:
    k, v = (array.astype(given) for array in tokens(7))
    cache = PagedKVCache(_pool(dtype=dtype, backend=backend))
    held = cache.update_and_fetch(k, v)
    for got, want in zip(held, (k, v), strict=True):
        assert got.dtype == dtype.mx
        assert mx.array_equal(got, want.astype(dtype.mx))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fork_shares_pages_until_one_of_the_two_writes(backend: Backend) -> None:
    pool = _pool(backend=backend)
    k, v = tokens(12)
    cache = PagedKVCache(pool)
    cache.append(k, v)
    fork = cache.fork()
    assert (pool.stats().in_use, pool.stats().shared) == (3, 3)
    more, other = tokens(2, seed=1), tokens(2, seed=2)
    fork.append(*more)
    assert (pool.stats().in_use, pool.stats().shared, pool.stats().copied) == (4, 2, 1)
    cache.append(*other)
    assert pool.stats().copied == 1
    assert mx.array_equal(fork.keys(), mx.concatenate([k, more[0]], axis=2))
    assert mx.array_equal(cache.values(), mx.concatenate([v, other[1]], axis=2))
    cache.clear()
    assert (pool.stats().in_use, pool.stats().shared) == (3, 0)
    assert mx.array_equal(fork.values(), mx.concatenate([v, more[1]], axis=2))


def test_one_prompt_becomes_a_batch_of_answers() -> None:
    pool = _pool()
    k, v = tokens(11)
    prompt = PagedKVCache(pool)
    prompt.append(k, v)
    answers = prompt.fork(rows=[0, 0, 0])
    prompt.clear()
    assert pool.stats().in_use == 3
    more = tokens(1, batch=3, seed=5)
    answers.append(*more)
    # Two rows copied the last page, the third wrote into it.
    assert (pool.stats().in_use, pool.stats().copied) == (5, 2)
    held = answers.keys()
    assert mx.array_equal(held[:, :, :11], mx.broadcast_to(k, (3, HKV, 11, DIM)))
    assert mx.array_equal(held[:, :, 11:], more[0])
    answers.filter([2])
    assert mx.array_equal(answers.keys(), held[2:])
    assert pool.stats().in_use == 3


@pytest.mark.parametrize("rows", [[2], [0, -1], []])
def test_rows_that_are_not_there_are_refused(rows: list[int]) -> None:
    pool = _pool()
    cache = PagedKVCache(pool)
    cache.append(*tokens(4, batch=2))
    for choose in (cache.fork, cache.filter):
        with pytest.raises(CacheError, match="expected at least one of the cache's 2"):
            choose(rows)
    assert (cache.keys().shape[0], pool.stats().in_use, pool.stats().shared) == (2, 2, 0)


def test_copies_and_dropped_caches_keep_the_pool_in_balance() -> None:
    pool = _pool()
    cache = PagedKVCache(pool)
    k, v = tokens(8)
    cache.append(k, v)
    copies = [copy.deepcopy(cache), copy.copy(cache)]
    assert pool.stats().in_use == 2
    copies[0].append(*tokens(1))
    assert pool.stats().in_use == 3
    assert mx.array_equal(cache.keys(), k)
    del cache, copies
    gc.collect()
    assert pool.free == 23


def test_trim_gives_pages_back() -> None:
    pool = _pool()
    cache = PagedKVCache(pool)
    k, v = tokens(14)
    cache.append(k, v)
    assert (cache.trim(4), cache.offset, pool.stats().in_use) == (4, 10, 2)
    assert (cache.trim(-3), cache.trim(0), pool.stats().in_use) == (0, 0, 2)
    assert mx.array_equal(cache.keys(), k[:, :, :10])
    assert (cache.trim(99), cache.offset, pool.stats().in_use) == (10, 0, 0)
    assert cache.empty()
    cache.append(k, v)
    assert mx.array_equal(cache.values(), v)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_oldest_pages_go_beyond_max_pages(backend: Backend) -> None:
    pool = _pool(backend=backend)
    cache = PagedKVCache(pool, max_pages=3)
    k, v = tokens(31)
    q = queries(1)
    for at in range(31):
        mask = cache.make_mask(1, return_array=True)
        out = cache.attend(q, k[:, :, at : at + 1], v[:, :, at : at + 1], scale=0.25)
        first = max(0, at // PAGE - 2) * PAGE
        assert isinstance(mask, mx.array)
        assert mask.shape == (1, cache.size()) == (1, at + 1 - first)
        span = slice(first, at + 1)
        np.testing.assert_allclose(
            np.asarray(out), _attended(q, k[:, :, span], v[:, :, span]), atol=2e-6
        )
    stats = cache.stats()
    assert (stats.total, stats.hot, stats.evicted) == (31, 11, 20)
    assert (pool.stats().evicted, pool.stats().high_water) == (4, 3)
    assert not cache.is_trimmable()
    assert (cache.trim(99), cache.offset) == (11, 20)
    cache.clear()
    assert (cache.offset, cache.is_trimmable(), pool.free) == (0, False, 23)
    assert PagedKVCache(pool).is_trimmable()


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_appended_together_see_each_other_before_pages_go(backend: Backend) -> None:
    cache = PagedKVCache(_pool(backend=backend), max_pages=2)
    k, v = tokens(24)
    q = queries(24)
    first = cache.attend(q[:, :, :4], k[:, :, :4], v[:, :, :4], scale=0.25)
    rest = cache.attend(q[:, :, 4:23], k[:, :, 4:23], v[:, :, 4:23], scale=0.25)
    want = _attended(q[:, :, :23], k[:, :, :23], v[:, :, :23])
    np.testing.assert_allclose(np.asarray(mx.concatenate([first, rest], axis=2)), want, atol=2e-6)
    mask = cache.make_mask(7, return_array=True)
    assert isinstance(mask, mx.array)
    assert mask.shape == (7, 8 + 7)
    cache.append(k[:, :, 23:], v[:, :, 23:])
    assert mx.array_equal(cache.keys(), k[:, :, 15:])


def test_an_exhausted_pool_refuses_and_nothing_changes() -> None:
    pool = _pool(4)
    k, v = tokens(12)
    cache, other = PagedKVCache(pool), PagedKVCache(pool)
    cache.append(k, v)
    message = (
        "the pool is exhausted: 2 more pages are needed, 1 of 4 are free "
        r"\(5 tokens each, 7680 bytes in all\); clear or trim"
    )
    before = pool.stats()
    with pytest.raises(CacheError, match=message):
        other.append(*tokens(6))
    assert pool.stats() == before
    assert other.empty()
    fork = cache.fork()
    with pytest.raises(CacheError, match="2 more pages are needed, 1 of 4"):
        fork.append(*tokens(4))
    assert (fork.offset, pool.stats().copied) == (12, 0)
    fork.append(*tokens(3))
    assert mx.array_equal(fork.keys()[:, :, :12], k)


def test_a_full_pool_takes_what_eviction_frees() -> None:
    pool = _pool(2)
    cache = PagedKVCache(pool, max_pages=2)
    k, v = tokens(17)
    for at in range(17):
        cache.append(k[:, :, at : at + 1], v[:, :, at : at + 1])
    assert mx.array_equal(cache.keys(), k[:, :, 10:])
    assert (pool.stats().high_water, pool.stats().taken, pool.stats().reused) == (2, 4, 2)
    fork = cache.fork()
    with pytest.raises(CacheError, match="1 more pages are needed, 0 of 2 are free"):
        cache.append(*tokens(1))
    fork.clear()
    cache.append(*tokens(3))
    assert (cache.size(), fork.size()) == (10, 0)


def test_evicting_shared_pages_frees_none() -> None:
    pool = _pool(3)
    cache = PagedKVCache(pool, max_pages=2)
    cache.append(*tokens(10))
    fork = cache.fork()
    other = PagedKVCache(pool)
    other.append(*tokens(1))
    with pytest.raises(CacheError, match="1 more pages are needed, 0 of 3 are free"):
        cache.append(*tokens(1))
    assert (cache.size(), fork.size(), pool.stats().evicted) == (10, 10, 0)
    fork.clear()
    cache.append(*tokens(1))
    assert (cache.size(), pool.stats().evicted) == (6, 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 7e4])
def test_what_the_dtype_cannot_hold_is_refused(bad: float, backend: Backend) -> None:
    pool = _pool(backend=backend, dtype=HotDtype.F16)
    cache = PagedKVCache(pool, validate=True)
    k, v = tokens(6)
    cache.append(k, v)
    before = pool.stats(), np.asarray(cache.keys())
    worse = np.array(v)
    worse[0, 2, 3, 5] = bad
    for pair in ((k, mx.array(worse)), (mx.array(worse), v)):
        with pytest.raises(CacheError, match="NaN, infinite or beyond what f16 holds"):
            cache.append(*pair)
    assert (cache.offset, pool.stats()) == (6, before[0])
    assert np.array_equal(np.asarray(cache.keys()), before[1])


@pytest.mark.parametrize(("k_shape", "v_shape"), MISFITS)
def test_shapes_that_do_not_fit_are_refused(
    k_shape: tuple[int, ...], v_shape: tuple[int, ...]
) -> None:
    cache = PagedKVCache(_pool())
    cache.append(*tokens(2))
    with pytest.raises(CacheError, match="got keys"):
        cache.append(mx.zeros(k_shape), mx.zeros(v_shape))
    assert cache.offset == 2


def test_queries_that_do_not_fit_are_refused() -> None:
    cache = PagedKVCache(_pool())
    with pytest.raises(CacheError, match="got 1 queries over 0 held tokens"):
        cache.attend_held(queries(1), scale=1.0)
    with pytest.raises(CacheError, match="the cache is empty"):
        cache.keys()
    cache.append(*tokens(2))
    with pytest.raises(CacheError, match=r"expected \[1, a multiple of 3, L, 16\]"):
        cache.attend_held(queries(1, batch=2), scale=1.0)
    with pytest.raises(CacheError, match="got max_pages=0"):
        PagedKVCache(_pool(), max_pages=0)


def test_an_append_of_nothing_changes_nothing() -> None:
    pool = _pool()
    cache = PagedKVCache(pool)
    cache.append(*tokens(0))
    assert (cache.offset, pool.free) == (0, 23)


@needs_kernels
def test_tokens_that_cannot_be_computed_take_no_page() -> None:
    made: list[mx.array] = []
    thread = threading.Thread(target=lambda: made.append(tokens(6)[0] + 1))
    thread.start()
    thread.join()
    pool = _pool()
    for validate in (False, True):
        cache = PagedKVCache(pool, validate=validate)
        with pytest.raises(RuntimeError, match="Stream"):
            cache.append(made[0], made[0])
        assert (cache.offset, pool.free) == (0, 23)


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_follow_the_plain_cache(backend: Backend) -> None:
    paged, plain = PagedKVCache(_pool(backend=backend)), DynamicKVCache(100, backend=backend)
    k, v = tokens(7)
    assert paged.make_mask(1) is plain.make_mask(1) is None
    assert paged.make_mask(7) == plain.make_mask(7) == "causal"
    paged.append(k, v)
    plain.append(k, v)
    for window in (None, 4):
        mine = paged.make_mask(3, return_array=True, window_size=window)
        assert mx.array_equal(mine, plain.make_mask(3, return_array=True, window_size=window))


@pytest.mark.parametrize("dtype", list(HotDtype))
def test_stats_count_pages_and_tokens(dtype: HotDtype) -> None:
    pool = _pool(dtype=dtype)
    cache = PagedKVCache(pool)
    assert (cache.stats().ratio, cache.nbytes) == (1.0, 0)
    cache.append(*tokens(7, batch=2))
    stats = cache.stats()
    assert (stats.total, stats.hot, stats.evicted) == (7, 7, 0)
    assert stats.hot_bytes == cache.keys().nbytes + cache.values().nbytes
    assert stats.fp16_bytes == 2 * 2 * HKV * 7 * DIM * 2
    assert cache.nbytes == stats.allocated_bytes == 4 * pool.page_bytes


@pytest.mark.parametrize("max_pages", [None, 2])
def test_state_round_trips(max_pages: int | None) -> None:
    cache = PagedKVCache(_pool(dtype=HotDtype.BF16), max_pages=max_pages)
    k, v = tokens(14)
    for at in range(14):
        cache.append(k[:, :, at : at + 1], v[:, :, at : at + 1])
    again = PagedKVCache.from_state(cache.state)
    assert again.stats() == cache.stats()
    for one in (cache, again):
        one.append(*tokens(3, seed=9))
    assert mx.array_equal(again.keys(), cache.keys())
    assert mx.array_equal(again.values(), cache.values())
    assert PagedKVCache.from_state(PagedKVCache(_pool()).state).empty()
