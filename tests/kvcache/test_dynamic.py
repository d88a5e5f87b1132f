import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcache import CacheError, DynamicKVCache, HotDtype, attend
from tests.kvcache import oracle

HKV, HQ, DIM = 3, 6, 16


def _tokens(count: int, *, batch: int = 1, seed: int = 7) -> tuple[mx.array, mx.array]:
    rng = np.random.default_rng(seed)
    k, v = rng.normal(size=(2, batch, HKV, count, DIM)).astype(np.float32)
    return mx.array(k), mx.array(v)


def _queries(count: int, *, batch: int = 1) -> mx.array:
    rng = np.random.default_rng(count)
    return mx.array(rng.normal(size=(batch, HQ, count, DIM)).astype(np.float32))


def _cache(size: int = 1000) -> DynamicKVCache:
    return DynamicKVCache(size, dtype=HotDtype.F32)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 140), min_size=1, max_size=7))
def test_holds_what_was_appended_across_growth(lengths: list[int]) -> None:
    total = sum(lengths)
    k, v = _tokens(total)
    cache = _cache(total)
    start = 0
    for length in lengths:
        cache.append(k[:, :, start : start + length], v[:, :, start : start + length])
        start += length
    assert cache.offset == total
    assert mx.array_equal(cache.keys(), k)
    assert mx.array_equal(cache.values(), v)


@pytest.mark.parametrize("steps", [(11,), (1,) * 11, (4, 1, 6), (10, 1)])
def test_attention_does_not_depend_on_how_tokens_arrive(steps: tuple[int, ...]) -> None:
    k, v = _tokens(11)
    q = _queries(11)
    cache = _cache()
    start, outputs = 0, []
    for length in steps:
        span = slice(start, start + length)
        outputs.append(attend(q[:, :, span], k[:, :, span], v[:, :, span], cache=cache, scale=0.25))
        start += length
    got = np.asarray(mx.concatenate(outputs, axis=2))
    q64, k64, v64 = (np.asarray(array).astype(np.float64) for array in (q, k, v))
    want = oracle.attention(q64, k64, v64, 0.25, oracle.causal(1, 11, 11))
    np.testing.assert_allclose(got, want, atol=2e-6)
    without_cache = attend(q, k, v, cache=None, scale=0.25)
    np.testing.assert_allclose(np.asarray(without_cache), want, atol=2e-6)


def test_growth_doubles_and_never_passes_the_maximum() -> None:
    cache = _cache(700)
    token = 2 * HKV * DIM * 4
    sizes = []
    for _ in range(7):
        cache.append(*_tokens(100))
        sizes.append(cache.nbytes // token)
    assert sizes == [256, 256, 512, 512, 512, 700, 700]


def test_overflow_is_refused_and_changes_nothing() -> None:
    cache = _cache(10)
    k, v = _tokens(8)
    cache.append(k, v)
    with pytest.raises(CacheError, match="3 more tokens do not fit: the cache holds 8 of 10"):
        cache.append(*_tokens(3))
    assert cache.offset == 8
    assert mx.array_equal(cache.keys(), k)
    cache.append(*_tokens(2))
    assert cache.offset == 10


@pytest.mark.parametrize(
    ("k_shape", "v_shape"),
    [
        ((1, HKV, 2, DIM), (1, HKV, 3, DIM)),
        ((1, HKV + 1, 2, DIM), (1, HKV + 1, 2, DIM)),
        ((2, HKV, 2, DIM), (2, HKV, 2, DIM)),
        ((1, HKV, 2, DIM + 1), (1, HKV, 2, DIM + 1)),
        ((HKV, 2, DIM), (HKV, 2, DIM)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    k_shape: tuple[int, ...], v_shape: tuple[int, ...]
) -> None:
    cache = _cache()
    k, v = _tokens(5)
    cache.append(k, v)
    with pytest.raises(CacheError, match="got keys"):
        cache.append(mx.zeros(k_shape), mx.zeros(v_shape))
    assert mx.array_equal(cache.keys(), k)


def test_more_queries_than_tokens_are_refused() -> None:
    cache = _cache()
    cache.append(*_tokens(2))
    with pytest.raises(CacheError, match="got 3 queries over 2 held tokens"):
        cache.attend_held(_queries(3), scale=1.0)


def test_trim_clear_and_reset() -> None:
    cache = _cache()
    k, v = _tokens(9)
    cache.append(k, v)
    assert cache.is_trimmable()
    assert cache.trim(4) == 4
    assert mx.array_equal(cache.keys(), k[:, :, :5])
    assert cache.trim(100) == 5
    cache.append(k, v)
    cache.clear()
    assert (cache.offset, cache.nbytes) == (0, 256 * 2 * HKV * DIM * 4)
    cache.reset()
    assert cache.nbytes == 0
    with pytest.raises(CacheError, match="the cache is empty"):
        cache.keys()


def test_padding_is_never_attended_to() -> None:
    k, v = _tokens(9, batch=3)
    q = _queries(9, batch=3)
    padding = [0, 4, 2]
    batched = DynamicKVCache(50, dtype=HotDtype.F32, left_padding=padding)
    outputs = [
        batched.attend(q[:, :, s], k[:, :, s], v[:, :, s], scale=0.25)
        for s in (slice(0, 6), slice(6, 8), slice(8, 9))
    ]
    got = mx.concatenate(outputs, axis=2)
    assert np.isfinite(np.asarray(got)).all()
    for row, pad in enumerate(padding):
        one = slice(row, row + 1)
        alone = attend(q[one, :, pad:], k[one, :, pad:], v[one, :, pad:], cache=None, scale=0.25)
        np.testing.assert_allclose(np.asarray(got[one, :, pad:]), np.asarray(alone), atol=2e-6)


def test_filter_keeps_rows_with_their_padding() -> None:
    k, v = _tokens(6, batch=3)
    cache = DynamicKVCache(50, dtype=HotDtype.F32, left_padding=[0, 4, 2])
    cache.append(k, v)
    cache.filter([2, 0])
    assert mx.array_equal(cache.keys(), k[mx.array([2, 0])])
    mask = cache.make_mask(1)
    assert isinstance(mask, mx.array)
    assert mask.astype(mx.int32).sum(axis=-1).flatten().tolist() == [5, 7]


def test_masks_follow_mlx_lms_contract() -> None:
    from mlx_lm.models.cache import KVCache

    ours, theirs = _cache(), KVCache()
    k, v = _tokens(5)
    assert ours.make_mask(1) is None
    assert (
        ours.make_mask(5) == theirs.make_mask(5, return_array=False, window_size=None) == "causal"
    )
    ours.update_and_fetch(k, v)
    theirs.update_and_fetch(k, v)
    for window in (None, 4):
        mine = ours.make_mask(3, return_array=True, window_size=window)
        other = theirs.make_mask(3, return_array=True, window_size=window)
        assert mx.array_equal(mine, other)


@pytest.mark.parametrize("dtype", list(HotDtype))
def test_stats_count_bytes_of_the_dtype(dtype: HotDtype) -> None:
    cache = DynamicKVCache(1000, dtype=dtype)
    assert cache.stats().ratio == 1.0
    cache.append(*_tokens(7, batch=2))
    stats = cache.stats()
    assert (stats.total, stats.hot, stats.sink, stats.cold, stats.evicted) == (7, 7, 0, 0, 0)
    assert stats.hot_bytes == cache.keys().nbytes + cache.values().nbytes
    assert stats.fp16_bytes == 2 * 2 * HKV * 7 * DIM * 2
    assert stats.ratio == stats.fp16_bytes / stats.hot_bytes
    assert stats.as_dict()["ratio"] == stats.ratio


def test_state_round_trips() -> None:
    cache = _cache()
    k, v = _tokens(9)
    cache.append(k, v)
    again = DynamicKVCache.from_state(cache.state)
    assert again.offset == 9
    assert mx.array_equal(again.keys(), k)
    assert mx.array_equal(again.values(), v)
