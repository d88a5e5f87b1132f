"""What the two-tier cache promises beside holding the right tokens."""

import copy
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from kvcache import (
    Backend,
    CacheConfig,
    CacheError,
    HeadView,
    HotDtype,
    ModelShape,
    Rotation,
    TwoTierKVCache,
    resolve,
    set_policy,
)
from kvcache.prompt_cache import from_plan
from kvcache.tiers.ledger import TierSizes
from kvcache.tiers.plan import LayerPlan

HKV, HQ, DIM = 2, 6, 32
SCALE = 0.2
ROTATION = Rotation(periods=9.0 ** (np.arange(DIM // 2) / 5), traditional=True)
BACKENDS = pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])


def _plan(backend: Backend = Backend.REFERENCE, **fields: Any) -> LayerPlan:
    sizes = {"pinned": 3, "hot": 20, "block": 32, "slots": 3}
    sizes |= {name: fields.pop(name) for name in list(fields) if name in sizes}
    config = CacheConfig(backend=backend, hot_dtype=HotDtype.F32, **fields)
    return LayerPlan.of(config, TierSizes(**sizes), layer=2)


def _cache(backend: Backend = Backend.REFERENCE, **fields: Any) -> TwoTierKVCache:
    return TwoTierKVCache(_plan(backend, **fields), rotation=ROTATION)


def _draw(length: int, *, heads: int = HKV, seed: int = 1) -> mx.array:
    return mx.random.normal((1, heads, length, DIM), key=mx.random.key(seed))


def _filled(cache: TwoTierKVCache, length: int) -> TwoTierKVCache:
    cache.append(_draw(length), _draw(length, seed=2))
    return cache


@BACKENDS
@pytest.mark.parametrize("kv", [("hkivi5", "turbo3u"), ("kvarn4", "q4"), ("f16", "f16")])
def test_one_append_is_bit_identical_to_many(backend: Backend, kv: tuple[str, str]) -> None:
    k, v = _draw(211), _draw(211, seed=2)
    whole, single = (_cache(backend, keys=kv[0], values=kv[1]) for _ in range(2))
    whole.append(k, v)
    for at in range(211):
        single.append(k[:, :, at : at + 1], v[:, :, at : at + 1])
    assert whole.stats() == single.stats()
    for one, other in zip(whole.state, single.state, strict=True):
        same = one == other if isinstance(one, str) else mx.array_equal(one, other).item()
        assert same


@BACKENDS
def test_chunks_of_lossless_tokens_do_not_change_what_is_seen(backend: Backend) -> None:
    q, k, v = _draw(190, heads=HQ, seed=3), _draw(190), _draw(190, seed=2)
    outputs = []
    for step in (190, 47, 1):
        cache = _cache(backend, keys="f16", values="f16")
        parts = [slice(at, min(at + step, 190)) for at in range(0, 190, step)]
        out = [cache.attend(q[:, :, s], k[:, :, s], v[:, :, s], scale=SCALE) for s in parts]
        outputs.append(np.asarray(mx.concatenate(out, axis=2)))
    np.testing.assert_allclose(outputs[0], outputs[2], atol=2e-4)
    np.testing.assert_allclose(outputs[1], outputs[2], atol=2e-4)


@BACKENDS
def test_memory_stays_flat_however_long_the_chat(backend: Backend) -> None:
    cache = _cache(backend)
    sizes = []
    for turn in range(9):
        _filled(cache, 50)
        sizes.append(cache.nbytes)
        assert cache.stats().held_bytes <= cache.nbytes
        assert cache.stats().total == 50 * (turn + 1)
    plan = cache.plan
    rings = (3 + 51) * plan.token_bytes((1, HKV, DIM)) + 3 * plan.block_bytes((1, HKV, DIM))
    assert sizes[-1] == max(sizes) == rings
    assert sizes == sorted(sizes)


@BACKENDS
@pytest.mark.parametrize(
    ("k", "v", "message"),
    [
        (mx.zeros((1, HKV, 2, DIM)), mx.zeros((1, HKV, 3, DIM)), "got keys"),
        (mx.zeros((1, HKV, 2, DIM + 1)), mx.zeros((1, HKV, 2, DIM + 1)), "got keys"),
        (mx.zeros((2, HKV, 2, DIM)), mx.zeros((2, HKV, 2, DIM)), "got keys"),
        (mx.zeros((1, HKV, 2, DIM), mx.int32), mx.zeros((1, HKV, 2, DIM), mx.int32), "int32"),
        (mx.full((1, HKV, 2, DIM), mx.nan), mx.zeros((1, HKV, 2, DIM)), "NaN"),
        (mx.zeros((1, HKV, 2, DIM)), mx.full((1, HKV, 2, DIM), -mx.inf), "NaN"),
    ],
)
def test_a_refused_append_changes_nothing(
    backend: Backend, k: mx.array, v: mx.array, message: str
) -> None:
    cache = _filled(_cache(backend), 100)
    before, keys = cache.stats(), np.array(cache.keys())
    for refused in (
        lambda: cache.append(k, v),
        lambda: cache.attend(_draw(2, heads=HQ), k, v, scale=1.0),
        lambda: cache.update_and_fetch(k, v),
    ):
        with pytest.raises(CacheError, match=message):
            refused()
    assert cache.stats() == before
    np.testing.assert_array_equal(np.array(cache.keys()), keys)


@BACKENDS
def test_too_large_for_the_hot_dtype_is_refused(backend: Backend) -> None:
    plan = replace(_plan(backend), hot_dtype=HotDtype.F16)
    cache = TwoTierKVCache(plan)
    with pytest.raises(CacheError, match="beyond what f16 holds"):
        cache.append(mx.full((1, HKV, 1, DIM), 7e4), mx.zeros((1, HKV, 1, DIM)))
    unchecked = TwoTierKVCache(replace(plan, check_finite=False))
    unchecked.append(mx.full((1, HKV, 1, DIM), 7e4), mx.zeros((1, HKV, 1, DIM)))
    assert mx.isinf(unchecked.keys()).all()


@BACKENDS
def test_queries_that_do_not_fit_are_refused(backend: Backend) -> None:
    cache = _filled(_cache(backend), 5)
    with pytest.raises(CacheError, match="got 6 queries over 5 held tokens"):
        cache.attend_held(_draw(6, heads=HQ), scale=1.0)
    with pytest.raises(CacheError, match="a multiple of 2"):
        cache.attend_held(_draw(1, heads=3), scale=1.0)
    with pytest.raises(CacheError, match="empty"):
        _cache(backend).keys()


@BACKENDS
@pytest.mark.parametrize("length", [30, 130, 300])
def test_what_is_fetched_attends_alike(backend: Backend, length: int) -> None:
    """update_and_fetch, make_mask and one plain attention are the same as attend."""
    fetching, attending = (_filled(_cache(backend), length) for _ in range(2))
    for step in (1, 40, 7, 1):
        q, k, v = _draw(step, heads=HQ, seed=5), _draw(step, seed=6), _draw(step, seed=7)
        mask = fetching.make_mask(step)
        keys, values = fetching.update_and_fetch(k, v)
        got = mx.fast.scaled_dot_product_attention(q, keys, values, scale=SCALE, mask=mask)
        want = attending.attend(q, k, v, scale=SCALE)
        np.testing.assert_allclose(np.asarray(got), np.asarray(want), atol=1e-3)
        assert fetching.stats() == attending.stats()


@BACKENDS
def test_a_mask_is_honoured(backend: Backend) -> None:
    cache = _filled(_cache(backend, keys="f16", values="f16"), 170)
    q, k, v = _draw(2, heads=HQ, seed=5), _draw(2, seed=6), _draw(2, seed=7)
    held = cache.stats().held
    columns = np.zeros((2, held + 2), bool)
    columns[0, [1, 30, 70, held]] = True
    columns[1, [0, 50, held - 1, held + 1]] = True
    keys = np.concatenate([np.asarray(cache.keys()), np.asarray(k)], axis=2)
    values = np.concatenate([np.asarray(cache.values()), np.asarray(v)], axis=2)
    evicted = cache.stats().evicted
    turned = np.asarray(ROTATION(q, [-evicted, -evicted]))
    added = mx.where(mx.array(columns), 0.0, -mx.inf)
    for mask in (mx.array(columns), added):
        got = np.asarray(copy.deepcopy(cache).attend(q, k, v, scale=SCALE, mask=mask))
        for head, row in np.ndindex(HQ, 2):
            seen = np.flatnonzero(columns[row])
            query = [(turned if c < 3 else np.asarray(q))[0, head, row] for c in seen]
            scores = np.einsum("cd,cd->c", query, keys[0, head // 3, seen]) * SCALE
            weights = np.exp(scores - scores.max())
            want = weights / weights.sum() @ values[0, head // 3, seen]
            np.testing.assert_allclose(got[0, head, row], want, atol=1e-4)
    with pytest.raises(CacheError, match=f"got a mask of {held} columns, expected {held + 2}"):
        cache.attend(q, k, v, scale=SCALE, mask=mx.array(columns[:, :held]))


@BACKENDS
def test_attend_held_sees_what_is_held(backend: Backend) -> None:
    cache = _filled(_cache(backend), 200)
    q = _draw(4, heads=HQ, seed=9)
    got = np.asarray(cache.attend_held(q, scale=SCALE))
    scores = np.array(cache.scores(q, scale=SCALE))  # [1, HQ, 4, held]
    held = cache.stats().held
    scores[:, :, np.arange(held)[None] > np.arange(held - 4, held)[:, None]] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    values = np.repeat(np.asarray(cache.values()), 3, axis=1)
    np.testing.assert_allclose(got, weights @ values, atol=2e-4)


@BACKENDS
def test_held_pinned_tokens_do_not_see_later_ones(backend: Backend) -> None:
    q, k, v = _draw(7, heads=HQ, seed=5), _draw(7), _draw(7, seed=2)
    held, attending = _filled(_cache(backend), 7), _cache(backend)
    want = np.asarray(attending.attend(q, k, v, scale=SCALE))
    np.testing.assert_allclose(np.asarray(held.attend_held(q, scale=SCALE)), want, atol=5e-4)


@pytest.mark.parametrize("saved_by", [Backend.REFERENCE, Backend.CPU])
@pytest.mark.parametrize("kv", [("hkivi5", "turbo3u"), ("h4", "f16"), ("f16", "f16")])
@pytest.mark.parametrize("length", [0, 2, 60, 400])
def test_a_saved_cache_goes_on_as_it_was(
    saved_by: Backend, kv: tuple[str, str], length: int
) -> None:
    cache = _cache(saved_by, keys=kv[0], values=kv[1])
    if length:
        _filled(cache, length)
    for backend in (Backend.REFERENCE, Backend.CPU):
        loaded = TwoTierKVCache.from_state(cache.state, backend=backend)
        assert (loaded.ledger, loaded.plan.backend) == (cache.ledger, backend)
        going_on = copy.deepcopy(cache)
        for step in (1, 33):
            q, k, v = _draw(step, heads=HQ, seed=5), _draw(step, seed=6), _draw(step, seed=7)
            got, want = (np.asarray(c.attend(q, k, v, scale=SCALE)) for c in (loaded, going_on))
            np.testing.assert_allclose(got, want, atol=5e-4)


def test_a_foreign_state_is_refused() -> None:
    with pytest.raises(CacheError, match="saved as None"):
        TwoTierKVCache.from_state(("{}", None, None, None, None))
    with pytest.raises(CacheError, match="saved as 'other'"):
        TwoTierKVCache.from_state(('{"layout": "other"}', None, None, None, None))


@BACKENDS
def test_trimming_while_nothing_is_encoded(backend: Backend) -> None:
    cache = _filled(_cache(backend), 50)
    assert cache.is_trimmable()
    assert (cache.trim(45), cache.offset) == (45, 5)
    assert (cache.trim(9), cache.empty()) == (5, True)
    _filled(cache, 60)
    assert not cache.is_trimmable()
    with pytest.raises(CacheError, match=r"got 60 tokens to trim, expected at most 5: .*slack"):
        cache.trim(1000)
    assert cache.offset == 60
    assert cache.trim(5) == 5


@BACKENDS
def test_a_purely_quantized_sliding_window(backend: Backend) -> None:
    cache = _filled(_cache(backend, pinned=0, hot=0, block=1, slots=50, keys="h8", values="h8"), 90)
    stats = cache.stats()
    assert (stats.hot, stats.cold, stats.evicted) == (0, 50, 40)
    np.testing.assert_allclose(
        np.asarray(cache.keys()), np.asarray(_draw(90))[:, :, 40:], atol=0.03
    )


@BACKENDS
def test_a_new_policy_keeps_what_it_holds(backend: Backend) -> None:
    config = CacheConfig(
        max_tokens=300, hot=20, block=32, keys="h8", values="h8", sinks=3, backend=backend
    )
    shape = ModelShape(layers=2, kv_heads=HKV, head_dim=DIM, context=1000)
    caches = from_plan(resolve(config, shape), ROTATION)
    for cache in caches:
        _filled(cache, 500)
    before, total = np.array(caches[0].keys()), caches[0].stats()
    smaller = resolve(replace(config, max_tokens=150, block=16, keys="q4"), shape)
    set_policy(caches, smaller)
    stats = caches[1].stats()
    assert (stats.total, stats.sink) == (500, 3)
    assert total.held > stats.held > 150 - 32
    assert stats.evicted % 16 == 0
    after = np.asarray(caches[0].keys())
    np.testing.assert_array_equal(after[:, :, :3], before[:, :, :3])
    np.testing.assert_allclose(after[:, :, 3:], before[:, :, 3 - after.shape[2] :], atol=0.4)
    _filled(caches[0], 77)
    assert caches[0].stats().held <= smaller.max_tokens
    with pytest.raises(CacheError, match="got 4 pinned tokens, but the cache was made with 3"):
        set_policy(caches, resolve(replace(config, sinks=4), shape))


@BACKENDS
def test_a_policy_that_cannot_hold_the_tokens_changes_nothing(backend: Backend) -> None:
    cache = _cache(backend)
    cache.append(mx.full((1, HKV, 40, DIM), 7e4), mx.zeros((1, HKV, 40, DIM)))
    before, keys = cache.stats(), np.array(cache.keys())
    with pytest.raises(CacheError, match="beyond what f16 holds"):
        cache.set_policy(replace(cache.plan, hot_dtype=HotDtype.F16, check_finite=True))
    assert cache.stats() == before
    np.testing.assert_array_equal(cache.keys(), keys)


def test_sinks_turn_again_once_the_policy_says_so() -> None:
    cache = _filled(_cache(), 200)
    plan = cache.plan
    cache.set_policy(replace(plan, turn_sinks=False))
    assert not cache.stats().sinks_turned
    cache = TwoTierKVCache.from_state(cache.state)
    cache.set_policy(plan)
    assert cache.stats().sinks_turned


def test_layers_and_heads_rotate_differently_and_repeatably() -> None:
    caches = from_plan(
        resolve(
            CacheConfig(backend=Backend.REFERENCE),
            ModelShape(layers=2, kv_heads=HKV, head_dim=DIM, context=1000),
        ),
        None,
    )
    x = mx.broadcast_to(_draw(1, heads=1), (1, HKV, 1, DIM))
    first, second = (np.asarray(cache.plan.codecs[0].rotate(x)) for cache in caches)
    assert not np.allclose(first[0, 0], first[0, 1])
    assert not np.allclose(first[0, 0], second[0, 0])
    again = np.asarray(caches[0].plan.codecs[0].rotate(x))
    np.testing.assert_array_equal(first, again)


@BACKENDS
def test_a_head_can_be_looked_at_alone(backend: Backend) -> None:
    cache = _filled(_cache(backend), 100)
    views = [HeadView(cache=cache, head=head) for head in range(HKV)]
    stacked = np.stack([np.asarray(view.keys()) for view in views], axis=1)
    np.testing.assert_array_equal(stacked, np.asarray(cache.keys()))
    stacked = np.stack([np.asarray(view.values()) for view in views], axis=1)
    np.testing.assert_array_equal(stacked, np.asarray(cache.values()))
    whole = cache.stats()
    assert sum(view.stats().held_bytes for view in views) == whole.held_bytes
    assert {view.stats().total for view in views} == {whole.total}
    with pytest.raises(CacheError, match="got head 2, expected one of 2"):
        HeadView(cache=cache, head=2).keys()


@BACKENDS
def test_temperature_divides_the_scores(backend: Backend) -> None:
    q, k, v = _draw(1, heads=HQ, seed=5), _draw(1, seed=6), _draw(1, seed=7)
    warm = _filled(_cache(backend, temperature=2.0), 100).attend(q, k, v, scale=SCALE)
    half = _filled(_cache(backend), 100).attend(q, k, v, scale=SCALE / 2)
    np.testing.assert_allclose(np.asarray(warm), np.asarray(half), atol=1e-5)


@BACKENDS
def test_clear_keeps_the_memory_and_reset_gives_it_back(backend: Backend) -> None:
    cache = _filled(_cache(backend), 200)
    size = cache.nbytes
    cache.clear()
    assert (cache.offset, cache.nbytes, cache.stats().held_bytes) == (0, size, 0)
    again = np.array(_filled(cache, 200).keys())
    np.testing.assert_array_equal(again, np.array(_filled(_cache(backend), 200).keys()))
    cache.reset()
    assert cache.nbytes == 0
    _filled(cache, 3)


def test_an_unknown_rope_is_told() -> None:
    known, unknown = _cache(), TwoTierKVCache(_plan())
    assert known.stats().sinks_turned
    assert not unknown.stats().sinks_turned
    assert not _cache(turn_sinks=False).stats().sinks_turned


def test_without_a_model_a_window_must_be_given() -> None:
    cache = TwoTierKVCache.from_config(CacheConfig(max_tokens=200, hot=16, block=16))
    _filled(cache, 300)
    assert cache.stats().held <= 200
    with pytest.raises(CacheError, match="needs max_tokens"):
        TwoTierKVCache.from_config(CacheConfig())
