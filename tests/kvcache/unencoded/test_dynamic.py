import copy
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models import cache as mlx_lm_cache

from kvcache import Backend, CacheError, DynamicKVCache, HotDtype, attend
from kvcache.config import MOST_TOKENS
from kvcache.sight import Sight
from kvcache.unencoded.padding import LeftPadding
from tests.kvcache import oracle
from tests.kvcache.cache_inputs import (
    BACKENDS,
    DIM,
    HKV,
    MISFITS,
    full_precision,
    needs_kernels,
    queries,
    tokens,
)
from tests.kvcache.tiny_llama import generate, make_model


@settings(max_examples=30)
@given(lengths=st.lists(st.integers(1, 140), min_size=1, max_size=7))
def test_holds_what_was_appended_across_growth(lengths: list[int]) -> None:
    total = sum(lengths)
    k, v = tokens(total)
    cache = full_precision(total)
    start = 0
    for length in lengths:
        cache.append(k[:, :, start : start + length], v[:, :, start : start + length])
        start += length
    assert cache.offset == total
    assert mx.array_equal(cache.keys(), k)
    assert mx.array_equal(cache.values(), v)


@pytest.mark.parametrize("steps", [(11,), (1,) * 11, (4, 1, 6), (10, 1)])
def test_attention_does_not_depend_on_how_tokens_arrive(steps: tuple[int, ...]) -> None:
    k, v = tokens(11)
    q = queries(11)
    cache = full_precision()
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
    cache = full_precision(700)
    token = 2 * HKV * DIM * 4
    sizes = []
    for _ in range(7):
        cache.append(*tokens(100))
        sizes.append(cache.nbytes // token)
    assert sizes == [256, 256, 512, 512, 512, 700, 700]


def test_overflow_is_refused_and_changes_nothing() -> None:
    cache = full_precision(10)
    k, v = tokens(8)
    cache.append(k, v)
    with pytest.raises(CacheError, match="3 more tokens do not fit: the cache holds 8 of 10"):
        cache.append(*tokens(3))
    assert cache.offset == 8
    assert mx.array_equal(cache.keys(), k)
    cache.append(*tokens(2))
    assert cache.offset == 10


@pytest.mark.parametrize(
    ("k_shape", "v_shape"),
    [*MISFITS, ((0, HKV, 2, DIM), (0, HKV, 2, DIM))],
)
def test_shapes_that_do_not_fit_are_refused(
    k_shape: tuple[int, ...], v_shape: tuple[int, ...]
) -> None:
    cache = full_precision()
    k, v = tokens(5)
    cache.append(k, v)
    with pytest.raises(CacheError, match="got keys"):
        cache.append(mx.zeros(k_shape), mx.zeros(v_shape))
    assert mx.array_equal(cache.keys(), k)


def test_tokens_that_are_not_floating_are_refused() -> None:
    cache = full_precision()
    k, v = tokens(5)
    with pytest.raises(CacheError, match=r"got values of mlx.core.int32, expected float16"):
        cache.append(k, v.astype(mx.int32))
    assert (cache.offset, cache.nbytes) == (0, 0)


def test_queries_of_another_shape_are_refused() -> None:
    cache = full_precision()
    cache.append(*tokens(5))
    for q in (queries(1, batch=2), queries(1)[:, :5], queries(1)[..., :8], queries(1)[0]):
        with pytest.raises(CacheError, match=r"expected \[1, a multiple of 3, L, 16\]"):
            cache.attend_held(q, scale=1.0)


def test_more_queries_than_tokens_are_refused() -> None:
    cache = full_precision()
    cache.append(*tokens(2))
    with pytest.raises(CacheError, match="got 3 queries over 2 held tokens"):
        cache.attend_held(queries(3), scale=1.0)


def test_trim_clear_and_reset() -> None:
    cache = full_precision()
    k, v = tokens(9)
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
    k, v = tokens(9, batch=3)
    q = queries(9, batch=3)
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
    k, v = tokens(6, batch=3)
    cache = DynamicKVCache(50, dtype=HotDtype.F32, left_padding=[0, 4, 2])
    cache.append(k, v)
    cache.filter([2, 0])
    assert mx.array_equal(cache.keys(), k[mx.array([2, 0])])
    mask = cache.make_mask(1)
    assert isinstance(mask, mx.array)
    assert mask.astype(mx.int32).sum(axis=-1).flatten().tolist() == [5, 7]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [[3], [-1], [0, 9], []])
def test_rows_that_there_are_not_are_refused(rows: list[int], backend: Backend) -> None:
    """MLX would read them from memory of others."""
    cache = DynamicKVCache(50, backend=backend, left_padding=[0, 1, 2])
    with pytest.raises(CacheError, match="at least one of the cache's 3"):
        cache.filter(rows)
    cache.append(*tokens(7, batch=3))
    with pytest.raises(CacheError, match="at least one of the cache's 3"):
        cache.filter(rows)
    assert cache.keys().shape[0] == 3


def test_padding_and_tokens_have_as_many_rows() -> None:
    cache = DynamicKVCache(50, left_padding=[0, 1])
    with pytest.raises(CacheError, match=r"holds \[B, Hkv, _, D\] = \[2, any, _, any\]"):
        cache.append(*tokens(7, batch=3))
    assert cache.empty()
    with pytest.raises(CacheError, match="expected none below 0"):
        DynamicKVCache(50, left_padding=[0, -1])


def test_masks_follow_mlx_lms_contract() -> None:
    from mlx_lm.models.cache import KVCache

    ours, theirs = full_precision(), KVCache()
    k, v = tokens(5)
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
    cache.append(*tokens(7, batch=2))
    stats = cache.stats()
    assert (stats.total, stats.hot, stats.sink, stats.cold, stats.evicted) == (7, 7, 0, 0, 0)
    assert stats.hot_bytes == cache.keys().nbytes + cache.values().nbytes
    assert stats.fp16_bytes == 2 * 2 * HKV * 7 * DIM * 2
    assert stats.ratio == stats.fp16_bytes / stats.hot_bytes
    assert stats.as_dict()["ratio"] == stats.ratio


@pytest.mark.parametrize("dtype", list(HotDtype))
def test_state_round_trips(dtype: HotDtype) -> None:
    cache = DynamicKVCache(50, dtype=dtype, left_padding=[0, 3])
    k, v = tokens(9, batch=2)
    cache.append(k, v)
    again = DynamicKVCache.from_state(cache.state)
    assert again.stats() == cache.stats()
    assert again.max_seq_len == 50
    for one in (cache, again):
        one.append(*tokens(4, batch=2, seed=3))
    assert mx.array_equal(again.keys(), cache.keys())
    q = queries(2, batch=2)
    assert mx.array_equal(again.attend_held(q, scale=0.5), cache.attend_held(q, scale=0.5))


def test_an_empty_cache_can_be_saved_and_loaded() -> None:
    again = DynamicKVCache.from_state(full_precision(7).state)
    assert (again.offset, again.size(), again.empty(), again.max_seq_len) == (0, 0, True, 7)
    again.append(*tokens(7))
    assert not again.empty()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_deep_copy_goes_its_own_way(backend: Backend) -> None:
    cache = DynamicKVCache(50, dtype=HotDtype.F32, backend=backend)
    k, v = tokens(6)
    cache.append(k, v)
    other = copy.deepcopy(cache)
    other.trim(2)
    other.append(*tokens(2, seed=1))
    assert mx.array_equal(cache.keys(), k)
    assert not mx.array_equal(other.keys(), k)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 7e4])
def test_what_the_dtype_cannot_hold_is_refused(bad: float, backend: Backend) -> None:
    cache = DynamicKVCache(50, backend=backend, validate=True)
    k, v = tokens(5)
    cache.append(k, v)
    before = np.asarray(cache.keys())
    worse = np.array(k)
    worse[0, 1, 4, 11] = bad
    for pair in ((k, mx.array(worse)), (mx.array(worse), v)):
        with pytest.raises(CacheError, match="NaN, infinite or beyond what f16 holds"):
            cache.append(*pair)
    assert cache.offset == 5
    assert np.array_equal(np.asarray(cache.keys()), before)


@needs_kernels
def test_the_cpu_backend_validates_unless_told_not_to() -> None:
    nan = mx.full((1, HKV, 2, DIM), float("nan"))
    with pytest.raises(CacheError, match="NaN"):
        full_precision().append(nan, nan)
    unchecked = DynamicKVCache(10, validate=False)
    unchecked.append(nan, nan)
    assert unchecked.offset == 2


@pytest.mark.parametrize("given", [mx.float16, mx.bfloat16, mx.float32])
@pytest.mark.parametrize("dtype", list(HotDtype))
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_dtype_is_held_as_the_cache_says(
    given: mx.Dtype, dtype: HotDtype, backend: Backend
) -> None:
    k, v = (array.astype(given) for array in tokens(5))
    held = DynamicKVCache(50, dtype=dtype, backend=backend).update_and_fetch(k, v)
    for got, want in zip(held, (k, v), strict=True):
        assert mx.array_equal(got, want.astype(dtype.mx))


# -- mlx-lm --


@pytest.mark.parametrize("backend", BACKENDS)
def test_generates_saves_and_loads_in_mlx_lm(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlx_lm_cache, "DynamicKVCache", DynamicKVCache, raising=False)
    model, prompt = make_model(), list(range(3, 32))
    want, _ = generate(model, prompt, mlx_lm_cache.make_prompt_cache(model), 17)
    cache = [
        DynamicKVCache(99, dtype=HotDtype.F32, backend=backend) for _ in range(len(model.layers))
    ]
    assert generate(model, prompt, cache, 17, step=7)[0] == want
    path = str(tmp_path / "prompt.safetensors")
    mlx_lm_cache.save_prompt_cache(path, cache)
    loaded = mlx_lm_cache.load_prompt_cache(path)
    assert loaded[0].max_seq_len == 99
    assert generate(model, [8, 2], loaded, 7)[0] == generate(model, [8, 2], cache, 7)[0]


def test_padding_is_hidden_from_tokens_only() -> None:
    padding = np.array([0, 5, 2], np.int32)
    mask = np.asarray(LeftPadding(rows=padding).hide(Sight.of_all(4, 7).full()))
    assert mask.shape == (3, 1, 4, 7)
    for row, query, key in np.ndindex(3, 4, 7):
        seen = key <= 3 + query and (key >= padding[row] or 3 + query < padding[row])
        assert mask[row, 0, query, key] == seen
    assert mask.any(axis=-1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_first_capacity_and_what_the_buffer_is(backend: Backend) -> None:
    cache = DynamicKVCache(capacity=9, backend=backend)
    assert (cache.capacity, cache.batch, cache.kv_heads, cache.head_dim) == (0, 0, 0, 0)
    assert (cache.nbytes, cache.pending()) == (0, [])
    cache.append(*tokens(5, batch=2))
    assert (cache.capacity, cache.batch, cache.kv_heads, cache.head_dim) == (9, 2, HKV, DIM)
    cache.append(*tokens(5, batch=2))
    assert (cache.capacity, cache.offset) == (18, 10)
    short = DynamicKVCache(7, capacity=9, backend=backend)
    short.append(*tokens(1))
    assert short.capacity == 7


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_limit_nothing_is_taken_before_it_is_needed(backend: Backend) -> None:
    cache = DynamicKVCache(backend=backend)
    for _ in range(3):
        cache.append(*tokens(200))
    assert (cache.offset, cache.capacity) == (600, 1024)
    again = DynamicKVCache.from_state(cache.state)
    assert (again.offset, again.max_seq_len) == (600, MOST_TOKENS)


def test_keys_and_values_are_counted_apart() -> None:
    cache = DynamicKVCache(dtype="f32")
    cache.append(*tokens(5))
    assert cache.stats().key_bytes == cache.stats().value_bytes == 5 * HKV * DIM * 4
