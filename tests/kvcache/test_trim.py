"""Newest tokens are dropped as if they had not come, whatever their coming moved."""

import copy
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcache import Backend, CacheConfig, CacheError, HotDtype, ModelShape, TwoTierKVCache, resolve
from kvcache.fetched.marks import fetch_of
from kvcache.mlx_lm.hook import attend
from kvcache.prompt_cache import from_plan
from kvcache.tiers.ledger import TierSizes
from kvcache.tiers.plan import LayerPlan
from kvcache.turn import Rotation

HKV, HQ, DIM = 2, 4, 32
SCALE = 0.21
BACKENDS = [Backend.REFERENCE, Backend.CPU]
CODECS = [("f16", "f16"), ("hkivi5", "turbo3u"), ("kvarn3", "h4")]
ROTATION = Rotation(periods=9.0 ** (np.arange(DIM // 2) / 5), traditional=False)


def _cache(sizes: TierSizes, kv: tuple[str, str], backend: Backend) -> TwoTierKVCache:
    config = CacheConfig(keys=kv[0], values=kv[1], hot_dtype=HotDtype.F32, backend=backend)
    return TwoTierKVCache(LayerPlan.of(config, sizes, layer=1), rotation=ROTATION)


def _draw(heads: int, length: int, seed: int) -> mx.array:
    return mx.random.normal((1, heads, length, DIM), key=mx.random.key(seed))


def _feed(cache: TwoTierKVCache, length: int, seed: int) -> None:
    cache.append(_draw(HKV, length, seed), _draw(HKV, length, seed + 1000))


def _same(one: TwoTierKVCache, other: TwoTierKVCache) -> None:
    assert one.stats().total == other.stats().total
    assert (one.ledger.first, one.ledger.end) == (other.ledger.first, other.ledger.end)
    if one.ledger.held:
        for got, want in ((one.keys(), other.keys()), (one.values(), other.values())):
            np.testing.assert_array_equal(np.array(got), np.array(want))


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60)
@given(
    pinned=st.integers(0, 3),
    hot=st.integers(0, 23),
    block=st.sampled_from([1, 5, 32]),
    slots=st.integers(0, 3),
    slack=st.integers(1, 19),
    kv=st.sampled_from(CODECS),
    steps=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 19)), min_size=1, max_size=6),
    copied=st.booleans(),
)
def test_what_is_trimmed_leaves_no_trace(
    backend: Backend,
    pinned: int,
    hot: int,
    block: int,
    slots: int,
    slack: int,
    kv: tuple[str, str],
    steps: list[tuple[int, int]],
    copied: bool,
) -> None:
    """Each step brings tokens and others that are dropped again: as many as the slack has."""
    sizes = TierSizes(pinned=pinned, hot=hot, block=block, slots=slots, slack=slack)
    cache, plain = (_cache(sizes, kv, backend) for _ in range(2))
    for at, (length, more) in enumerate(steps):
        _feed(plain, length, at)
        _feed(cache, length, at)
        drafts = min(more, slack)
        if drafts:
            _feed(cache, drafts, 77 + at)
        if copied:
            cache = copy.deepcopy(cache)
        assert cache.is_trimmable()
        assert cache.trim(drafts) == drafts
        _same(cache, plain)
    q, k, v = (_draw(heads, 3, 9) for heads in (HQ, HKV, HKV))
    got, want = (np.array(each.attend(q, k, v, scale=SCALE)) for each in (cache, plain))
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("slots", [0, 2])
def test_a_window_loses_nothing_that_a_trimmed_token_pushed_out(
    backend: Backend, slots: int
) -> None:
    sizes = TierSizes.of_window(41, hot=41 if not slots else 9, block=16, slack=7)
    assert sizes.slots == slots
    cache, plain = (_cache(sizes, ("hkivi5", "turbo3u"), backend) for _ in range(2))
    for at in range(90):
        _feed(plain, 1, at)
        _feed(cache, 1, at)
        _feed(cache, 7, 300 + at)
        assert cache.trim(7) == 7
        _same(cache, plain)


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_than_can_be_taken_back_is_refused_and_changes_nothing(backend: Backend) -> None:
    cache = _cache(TierSizes(pinned=2, hot=8, block=4, slots=3, slack=3), CODECS[1], backend)
    _feed(cache, 80, 1)
    keys, exact = np.array(cache.keys()), cache.ledger.droppable
    assert exact >= 3
    with pytest.raises(CacheError, match=f"expected at most {exact}: .* larger slack"):
        cache.trim(exact + 1)
    np.testing.assert_array_equal(np.array(cache.keys()), keys)
    assert (cache.trim(-3), cache.trim(exact), cache.offset) == (0, exact, 80 - exact)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [2, 6, 11])
def test_tokens_of_a_draft_are_met_as_if_they_came_one_by_one(
    backend: Backend, length: int
) -> None:
    """Where a block leaves amid them, those after it meet it encoded, as without a draft."""
    sizes = TierSizes(pinned=2, hot=7, block=5, slots=3, slack=10)
    together, single, hooked = (_cache(sizes, ("q4", "q3"), backend) for _ in range(3))
    hooked.keeps_snapshot = True
    tolerance = 1e-3 if backend is Backend.CPU else 1e-4
    for at in range(0, 66, length):
        q, k, v = (_draw(heads, length, 7 + at) for heads in (HQ, HKV, HKV))
        want = []
        for i in range(length):
            one = (x[:, :, i : i + 1] for x in (q, k, v))
            want.append(single.attend(*one, scale=SCALE))
        mask = together.make_mask(length)
        keys, values = together.update_and_fetch(k, v)
        got = mx.fast.scaled_dot_product_attention(q, keys, values, scale=SCALE, mask=mask)
        expected = np.array(mx.concatenate(want, axis=2))
        np.testing.assert_allclose(np.array(got), expected, atol=tolerance)
        given_mask = hooked.make_mask(length)
        attended = attend(q, *hooked.update_and_fetch(k, v), scale=SCALE, mask=given_mask)
        np.testing.assert_allclose(np.array(attended), expected, atol=tolerance)
        _same(together, single)


def test_a_mask_of_the_callers_own_is_for_what_was_fetched() -> None:
    cache = _cache(TierSizes(pinned=0, hot=4, block=2, slots=1, slack=5), CODECS[0], BACKENDS[0])
    cache.keeps_snapshot = True
    _feed(cache, 30, 1)
    q, k, v = (_draw(heads, 6, 7) for heads in (HQ, HKV, HKV))
    mask = cache.make_mask(6)
    assert isinstance(mask, mx.array)
    keys, values = cache.update_and_fetch(k, v)
    assert mask.shape == (6, keys.shape[2])
    fetch, other = fetch_of(keys, values), mx.array(np.array(mask))
    assert fetch is not None
    assert fetch.attend(q, SCALE, other) is None
    given, own = (attend(q, keys, values, scale=SCALE, mask=each) for each in (other, mask))
    np.testing.assert_allclose(np.array(given), np.array(own), atol=1e-5)


@pytest.mark.parametrize("budget", ["5MiB", "1.3MiB"])
@pytest.mark.parametrize("slack", [0, 5, 100])
def test_a_budget_pays_for_the_slack(budget: str, slack: int) -> None:
    shape = ModelShape(layers=3, kv_heads=HKV, head_dim=64, context=2**17)
    config = CacheConfig.for_budget(budget, slack=slack, backend=Backend.REFERENCE)
    plan = resolve(config, shape)
    assert plan.config.budget is not None
    assert plan.max_bytes <= plan.config.budget
    (cache, *_) = caches = from_plan(plan, None)
    extra = max(0, plan.max_tokens + 3 * 64)
    tokens = mx.zeros((1, HKV, extra, 64))
    for each in caches:
        each.append(tokens, tokens)
    assert cache.stats().evicted
    assert sum(each.nbytes for each in caches) == plan.bytes_of(extra) <= plan.max_bytes


@pytest.mark.parametrize("fields", [{}, {"slack": 7}])
def test_a_saved_cache_says_its_slack(fields: dict[str, Any]) -> None:
    config = CacheConfig(max_tokens=90, hot=8, block=8, backend=Backend.REFERENCE, **fields)
    cache = TwoTierKVCache.from_config(config)
    _feed(cache, 40, 3)
    assert ("slack" in cache.state[0]) == bool(fields)
    loaded = TwoTierKVCache.from_state(cache.state, backend=Backend.REFERENCE)
    assert loaded.plan.sizes == cache.plan.sizes
    # What left the hot ring before it was saved is gone for good.
    assert 0 < loaded.ledger.droppable <= cache.ledger.droppable
