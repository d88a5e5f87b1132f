"""What a layer's cache gives mlx-lm's networks, and what they do with it."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from kvcache import Backend, CacheConfig, CacheError, HotDtype, TwoTierKVCache
from kvcache.fetching import FetchedKeys
from kvcache.mlx_lm import hook
from kvcache.turn import Rotation

HKV, HQ, DIM, SCALE = 2, 6, 32, 0.2
ROTATION = Rotation(periods=9.0 ** (np.arange(DIM // 2) / 5), traditional=False)
BACKENDS = pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])
ROUTED = pytest.mark.usefixtures("_routed")
CONFIG = CacheConfig(
    keys="h8", values="h8", hot_dtype=HotDtype.F32, max_tokens=130, hot=37, block=16, sinks=3
)


@pytest.fixture
def _routed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `install` has caches do; here attention is called by its name."""
    monkeypatch.setattr(TwoTierKVCache, "keeps_snapshot", True)


def _cache(backend: Backend, **fields: Any) -> TwoTierKVCache:
    config = replace(CONFIG, backend=backend, **fields)
    return TwoTierKVCache.from_config(config, rotation=ROTATION)


def _draw(tokens: int, *, heads: int = HKV, seed: int = 3) -> mx.array:
    return mx.random.normal((1, heads, tokens, DIM), key=mx.random.key(seed))


def _attend(q: mx.array, k: mx.array, v: mx.array, cache: TwoTierKVCache) -> mx.array:
    """As a network of mlx-lm's."""
    mask = cache.make_mask(k.shape[2])
    keys, values = cache.update_and_fetch(k, v)
    return hook.attend(q, keys, values, cache=cache, scale=SCALE, mask=mask)


@ROUTED
@BACKENDS
def test_attention_by_the_hook_is_the_caches_own(backend: Backend) -> None:
    """To the last bit, whatever moves meanwhile."""
    routed, own = _cache(backend), _cache(backend)
    for step, length in enumerate([5, 1, 40, 1, 1, 90, 33, *[1] * 40]):
        q, k, v = _draw(length, heads=HQ, seed=step), _draw(length), _draw(length, seed=4)
        got = _attend(q, k, v, routed)
        np.testing.assert_array_equal(np.array(got), np.array(own.attend(q, k, v, scale=SCALE)))
        assert (routed.ledger, routed.stats()) == (own.ledger, own.stats())
    np.testing.assert_array_equal(np.array(routed.keys()), np.array(own.keys()))


@ROUTED
@pytest.mark.parametrize(
    "asks",
    [
        lambda cache: cache.keys(),
        lambda cache: cache.state,
        lambda cache: copy.deepcopy(cache).keys(),
        lambda cache: cache.scores(_draw(1, heads=HQ)),
        lambda cache: cache.attend_held(_draw(1, heads=HQ), scale=SCALE),
        lambda cache: cache.unencoded(),
        lambda cache: cache.append(_draw(3), _draw(3)),
        lambda cache: cache.set_policy(_cache(Backend.CPU, hot=20).plan),
        lambda cache: cache.rewind(30),
    ],
)
def test_what_waits_for_its_queries_is_there_for_all_else(
    asks: Callable[[TwoTierKVCache], object],
) -> None:
    """Tokens that were fetched and not attended are held like any others."""
    waiting, own = _cache(Backend.CPU), _cache(Backend.CPU)
    for cache in (waiting, own):
        cache.append(_draw(70), _draw(70))
    k, v = _draw(20, seed=8), _draw(20, seed=9)
    waiting.update_and_fetch(k, v)
    own.append(k, v)
    assert (waiting.offset, waiting.stats().held) == (90, own.stats().held)
    asks(waiting)
    asks(own)
    assert waiting.ledger == own.ledger
    np.testing.assert_array_equal(np.array(waiting.values()), np.array(own.values()))


@ROUTED
def test_forgetting_all_forgets_what_waits() -> None:
    cache = _cache(Backend.CPU)
    cache.append(_draw(9), _draw(9))
    cache.update_and_fetch(_draw(2), mx.full((1, HKV, 2, DIM), mx.nan))
    cache.clear()
    assert cache.empty()
    cache.append(_draw(1, seed=5), _draw(1, seed=5))
    np.testing.assert_array_equal(np.array(cache.keys()), np.array(_draw(1, seed=5)))


@ROUTED
@pytest.mark.parametrize("asks", [lambda cache: cache.trim(1), lambda cache: cache.rewind(1)])
def test_going_back_is_refused_with_what_waits(asks: Callable[[TwoTierKVCache], object]) -> None:
    """And then nothing is held that was never written."""
    cache = _cache(Backend.CPU)
    cache.append(_draw(9), _draw(9))
    cache.update_and_fetch(_draw(2), mx.full((1, HKV, 2, DIM), mx.nan))
    with pytest.raises(CacheError, match="NaN"):
        asks(cache)
    assert cache.offset == 9
    np.testing.assert_array_equal(np.array(cache.keys()), np.array(_draw(9)))


@ROUTED
@pytest.mark.parametrize("lengths", [(20,), (60, 5)])
def test_attention_that_is_refused_loses_no_token(lengths: tuple[int, ...]) -> None:
    cache, own = (_cache(Backend.CPU, slack=7) for _ in range(2))
    for length in lengths:
        k = _draw(length, seed=length)
        own.append(k, k)
        keys, values = cache.update_and_fetch(k, k)
        wrong = mx.ones((length, keys.shape[2] + 1), mx.bool_)
        with pytest.raises(CacheError, match=r"got a mask of \d+ columns"):
            hook.attend(_draw(length, heads=HQ), keys, values, cache, SCALE, wrong)
    np.testing.assert_array_equal(np.array(cache.keys()), np.array(own.keys()))


@ROUTED
def test_what_is_refused_late_never_came() -> None:
    cache = _cache(Backend.CPU)
    q, k = _draw(1, heads=HQ), _draw(1)
    for _ in range(50):
        _attend(q, k, k, cache)
    ledger, keys = cache.ledger, np.array(cache.keys())
    nan = mx.full((1, HKV, 1, DIM), mx.nan)
    with pytest.raises(CacheError, match="NaN"):
        _attend(q, nan, k, cache)
    assert cache.ledger == ledger
    cache.update_and_fetch(k, nan)
    with pytest.raises(CacheError, match="NaN"):
        cache.keys()
    assert cache.ledger == ledger
    np.testing.assert_array_equal(np.array(cache.keys()), keys)
    with pytest.raises(CacheError, match="got keys"):
        cache.update_and_fetch(_draw(2), _draw(3))
    assert cache.ledger == ledger


def _twice(q: mx.array, keys: mx.array, values: mx.array, cache: TwoTierKVCache) -> mx.array:
    """As layers do that share keys and values."""
    first = hook.attend(q, keys, values, cache=cache, scale=SCALE, mask=None)
    return first + hook.attend(q, keys, values, cache=None, scale=SCALE, mask=None)


def _changed(q: mx.array, keys: mx.array, values: mx.array, cache: TwoTierKVCache) -> mx.array:
    return hook.attend(q, keys * 2, values, cache=cache, scale=SCALE, mask=None)


def _sinking(q: mx.array, keys: mx.array, values: mx.array, cache: TwoTierKVCache) -> mx.array:
    """As gpt-oss does, whose queries have sinks of their own."""
    sinks = mx.zeros((HQ,))
    return hook.attend(q, keys, values, cache=cache, scale=SCALE, mask=None, sinks=sinks)


@BACKENDS
@pytest.mark.parametrize("network", [_twice, _changed, _sinking])
def test_networks_that_compute_with_keys_get_them(
    network: Callable[..., mx.array], backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with and without the hook, from the first token to long after the first is gone."""
    outputs = list[Any]()
    for installed in (False, True):
        monkeypatch.setattr(TwoTierKVCache, "keeps_snapshot", installed)
        cache, some = _cache(backend), list[Any]()
        for step in range(160):
            q, k, v = (_draw(1, heads=heads, seed=9 * step + heads) for heads in (HQ, HKV, HKV))
            some.append(np.array(network(q, *cache.update_and_fetch(k, v), cache)))
        assert cache.stats().evicted > 0
        outputs.append(some)
    np.testing.assert_allclose(outputs[0], outputs[1], atol=2e-4)


@ROUTED
def test_keys_that_are_not_there_are_refused_by_name() -> None:
    """A network that begins to compute with them once nobody decodes them."""
    cache = _cache(Backend.CPU)
    q, k = _draw(1, heads=HQ), _draw(1)
    for _ in range(3):
        _attend(q, k, k, cache)
    keys, values = cache.update_and_fetch(k, k)
    assert isinstance(keys, FetchedKeys)
    with pytest.raises(CacheError, match="computes with its cache's keys as it did not before"):
        _sinking(q, keys, values, cache)
    keys, _ = cache.update_and_fetch(k, k)
    np.testing.assert_array_equal(np.array(keys[:, :, -2:]), np.array(mx.concatenate([k, k], 2)))


# -- without the hook --


def _counted(cache: TwoTierKVCache, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where a cache was each time that it decoded all it held."""
    decode, found = cache._memory.decoded, list[int]()

    def counting(*args: Any) -> Any:
        found.append(cache.offset)
        return decode(*args)

    monkeypatch.setattr(cache._memory, "decoded", counting)
    return found


@BACKENDS
@pytest.mark.parametrize("kind", [mx.float32, mx.bfloat16])
def test_a_window_stays_decoded_while_nothing_moves(
    backend: Backend, kind: mx.Dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping, fresh = _cache(backend), _cache(backend)
    fresh.most_decoded = 0
    for cache in (keeping, fresh):
        cache.append(_draw(90), _draw(90))
    decoded = _counted(keeping, monkeypatch)
    for step in range(60):
        k, v = (_draw(1, seed=seed).astype(kind) for seed in (step, step + 99))
        for mine, theirs in zip(*(c.update_and_fetch(k, v) for c in (keeping, fresh)), strict=True):
            assert mine.dtype == theirs.dtype == kind
            np.testing.assert_array_equal(
                np.array(mine.astype(mx.float32)), np.array(theirs.astype(mx.float32))
            )
        assert fresh.nbytes == fresh.stats().allocated_bytes == keeping.stats().allocated_bytes
    assert keeping.stats().evicted > 0
    # At first, and when a block has left the hot ring: 37 to 52 tokens behind 3 and blocks of 16.
    assert decoded == [90, 104, 120, 136]


@BACKENDS
def test_a_window_is_forgotten_with_what_it_was_decoded_from(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the ledger comes to say what it said."""
    cache, plan = _cache(backend), _cache(backend, keys="q4").plan

    def anew(empty: Callable[[], object], tokens: int, seed: int) -> Callable[[], None]:
        def change() -> None:
            empty()
            cache.append(_draw(tokens, seed=seed), _draw(tokens, seed=seed + 50))

        return change

    changes: list[Callable[[], object]] = [
        anew(lambda: cache.trim(1), 1, 11),
        anew(cache.clear, 91, 12),
        anew(cache.reset, 91, 13),
        lambda: cache.set_policy(plan),
        lambda: setattr(cache, "state", _with(91, 17, backend).state),
        lambda: cache.hold(cache.ledger, (1, HKV, DIM), _with(91, 18, backend).unencoded()),
    ]
    cache.append(_draw(91), _draw(91))
    for change in changes:
        cache.update_and_fetch(_draw(1), _draw(1))
        cache.trim(1)
        change()
        held = np.array(cache.keys())
        assert cache.nbytes == cache.stats().allocated_bytes
        keys, _ = cache.update_and_fetch(_draw(1), _draw(1))
        np.testing.assert_allclose(np.array(keys)[:, :, 3:-1], held[:, :, 3:], atol=1e-5)
        assert cache.nbytes > cache.stats().allocated_bytes
        cache.trim(1)


def _with(tokens: int, seed: int, backend: Backend) -> TwoTierKVCache:
    cache = _cache(backend)
    cache.append(_draw(tokens, seed=seed), _draw(tokens, seed=seed + 50))
    return cache


def test_a_window_is_bounded_and_counted() -> None:
    cache = _cache(Backend.CPU)
    cache.append(_draw(60), _draw(60))
    cache.update_and_fetch(_draw(1), _draw(1))
    room = 60 + 256  # tokens, as mlx-lm's cache makes room for them
    assert cache.nbytes - cache.stats().allocated_bytes == 2 * room * HKV * DIM * 4
    cache.most_decoded = 2 * room * HKV * DIM * 4 - 1
    cache.update_and_fetch(_draw(1), _draw(1))
    assert cache.nbytes == cache.stats().allocated_bytes


def test_a_window_grows() -> None:
    """By steps, for a hot tier of more tokens than one."""
    cache = TwoTierKVCache.from_config(replace(CONFIG, hot=900, max_tokens=1000))
    cache.append(_draw(7), _draw(7))
    for step in range(600):
        keys, _ = cache.update_and_fetch(_draw(1, seed=step), _draw(1, seed=step))
    assert cache.nbytes - cache.stats().allocated_bytes == 2 * (7 + 3 * 256) * HKV * DIM * 4
    np.testing.assert_array_equal(np.array(keys), np.array(cache.keys()))
