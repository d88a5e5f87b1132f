"""What a layer's cache gives mlx-lm's networks, and what they do with it."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from kvcache import Backend, CacheConfig, CacheError, HotDtype, TwoTierKVCache, fetching
from kvcache.fetched.marks import StandIn
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
    return hook.attend(q, keys, values, scale=SCALE, mask=mask)


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
            hook.attend(_draw(length, heads=HQ), keys, values, scale=SCALE, mask=wrong)
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


def _twice(q: mx.array, keys: Any, values: Any) -> mx.array:
    """As layers do that share keys and values."""
    first = hook.attend(q, keys, values, scale=SCALE)
    return first + hook.attend(q, keys, values, scale=SCALE)


def _changed(q: mx.array, keys: Any, values: Any) -> mx.array:
    return hook.attend(q, keys * 2, values, scale=SCALE)


def _changing(q: mx.array, keys: Any, values: Any) -> mx.array:
    """Now and then only."""
    return hook.attend(q, keys * 2 if q[0, 0, 0, 0] > 0 else keys, values, scale=SCALE)


def _sinking(q: mx.array, keys: Any, values: Any) -> mx.array:
    """As gpt-oss does, whose queries have sinks of their own."""
    return hook.attend(q, keys, values, scale=SCALE, sinks=mx.zeros((HQ,)))


def _scoring(q: mx.array, keys: Any, values: Any) -> mx.array:
    """Attention of its own."""
    keys, values = (x[:, mx.arange(HQ) // (HQ // HKV)] for x in (keys, values))
    out: mx.array = mx.softmax(q @ keys.swapaxes(-1, -2) * SCALE, axis=-1) @ values
    return out


@BACKENDS
@pytest.mark.parametrize("network", [_twice, _changed, _changing, _sinking, _scoring])
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
            some.append(np.array(network(q, *cache.update_and_fetch(k, v))))
        assert cache.stats().evicted > 0
        outputs.append(some)
    np.testing.assert_allclose(outputs[0], outputs[1], atol=2e-4)


def _standing_in(slack: int = 0, new: int = 2) -> tuple[TwoTierKVCache, Any, Any]:
    """A cache whose network is known to leave what it fetches to attention, and what that is."""
    cache = _cache(Backend.CPU, slack=slack)
    for step in range(150):
        _attend(_draw(1, heads=HQ), _draw(1, seed=step), _draw(1, seed=step + 500), cache)
    keys, values = cache.update_and_fetch(_draw(new, seed=8), _draw(new, seed=9))
    assert isinstance(keys, StandIn)
    return cache, keys, values


USES: list[Callable[[Any], Any]] = [
    lambda x: x * 2,
    lambda x: 2 * x,
    lambda x: x @ mx.ones((DIM, 3)),
    lambda x: x[..., 5:],
    lambda x: x.swapaxes(1, 2),
    lambda x: x.astype(mx.float16),
    lambda x: mx.array(x),
    lambda x: mx.add(x, x),
    lambda x: x == x,
    lambda x: -x,
    lambda x: np.array(x),
    lambda x: np.asarray(x, np.float64),
    lambda x: next(iter(x)),
]


@ROUTED
@pytest.mark.parametrize("slack", [0, 5])
@pytest.mark.parametrize("use", USES)
def test_whatever_is_done_with_keys_that_nobody_decoded(
    use: Callable[[Any], Any], slack: int
) -> None:
    """It is done with the decoded ones, and values too; then the cache goes on."""
    cache, keys, values = _standing_in(slack, new=5)
    own = _cache(Backend.CPU, slack=slack)
    own.keeps_snapshot = False
    for step in range(150):
        own.append(_draw(1, seed=step), _draw(1, seed=step + 500))
    real = own.update_and_fetch(_draw(5, seed=8), _draw(5, seed=9))
    for stands, right in zip((keys, values), real, strict=True):
        assert (stands.shape, stands.dtype, stands.ndim) == (right.shape, right.dtype, 4)
        np.testing.assert_allclose(np.array(use(stands)), np.array(use(right)), atol=1e-5)
    assert cache.ledger == own.ledger
    np.testing.assert_array_equal(np.array(cache.values()), np.array(own.values()))
    # What is fetched from now on is there at once.
    assert isinstance(cache.update_and_fetch(_draw(1), _draw(1))[0], mx.array)


@ROUTED
def test_mlxs_own_functions_say_what_they_were_given() -> None:
    """Where attention is not ours: bound by its name before, or uninstalled since."""
    cache, keys, values = _standing_in()
    q = _draw(2, heads=HQ)
    mask = cache.make_mask(2, return_array=True)
    for call in (
        lambda: mx.fast.scaled_dot_product_attention(q, keys, values, scale=SCALE),
        lambda: q @ keys,
        lambda: mx.sum(keys),
    ):
        with pytest.raises(TypeError, match="StandIn"):
            call()
    mx.eval(keys, values)
    assert repr(keys) == f"StandIn(keys {keys.shape} of mlx.core.float32)"
    assert mask is not None
    assert mx.isfinite(hook.attend(q, keys, values, scale=SCALE)).all().item()


@ROUTED
@pytest.mark.parametrize(
    "leaves",
    [
        lambda cache, *kv: hook.attend(_draw(2, heads=HQ), *kv, scale=SCALE),
        lambda cache, *_: cache.update_and_fetch(_draw(1), _draw(1)),
        lambda cache, *_: cache.keys(),
        lambda cache, *_: cache.clear(),
    ],
)
def test_keys_that_are_not_there_any_more_are_refused(leaves: Callable[..., object]) -> None:
    cache, keys, values = _standing_in()
    leaves(cache, keys, values)
    for use in (
        lambda: keys * 2,
        lambda: values[..., 0],
        lambda: hook.attend(_draw(2, heads=HQ), keys, values, scale=SCALE),
    ):
        with pytest.raises(CacheError, match="are no longer there: use what update_and_fetch"):
            use()


@ROUTED
def test_keys_of_an_earlier_fetch_are_what_they_were() -> None:
    """Though the cache has others by now."""
    cache = _cache(Backend.REFERENCE)
    cache.append(_draw(50), _draw(50))
    q, kept = _draw(1, heads=HQ), cache.update_and_fetch(_draw(1, seed=1), _draw(1, seed=2))
    want = np.array(hook.attend(q, *(mx.array(x) for x in kept), scale=SCALE))
    for _ in range(100):
        cache.update_and_fetch(_draw(1), _draw(1))
    np.testing.assert_allclose(
        np.array(hook.attend(q, *kept, scale=SCALE)), want, atol=1e-5, rtol=1e-4
    )


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


# -- steps that let tokens go --


@pytest.mark.parametrize("slack", [0, 6])
@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])
def test_a_step_that_lets_tokens_go_meets_sinks_where_each_query_does(
    backend: Backend, slack: int
) -> None:
    """At every offset around the ring, by steps of 1 to 64, as if one by one."""
    fields = {"keys": "f16", "values": "f16", "max_tokens": 29, "hot": 11, "block": 5}
    whole = _draw(64 + 45, seed=1), _draw(64 + 45, seed=2), _draw(64 + 45, heads=HQ, seed=3)
    single = _cache(backend, slack=slack, **fields)
    want = mx.concatenate(
        [
            single.attend(q, k, v, scale=SCALE)
            for k, v, q in (tuple(x[:, :, i : i + 1] for x in whole) for i in range(64 + 45))
        ],
        axis=2,
    )
    assert single.stats().evicted > 64
    for start in range(45):
        for length in range(1 + start % 9, 65, 9):
            cache = _cache(backend, slack=slack, **fields)
            if start:
                cache.append(*(x[:, :, :start] for x in whole[:2]))
            k, v, q = (x[:, :, start : start + length] for x in whole)
            mask = cache.make_mask(length)
            keys, values = cache.update_and_fetch(k, v)
            got = mx.fast.scaled_dot_product_attention(q, keys, values, scale=SCALE, mask=mask)
            right = want[:, :, start : start + length]
            np.testing.assert_allclose(np.array(got), np.array(right), atol=2e-5, rtol=1e-4)


@BACKENDS
def test_what_such_a_step_takes_is_bounded(backend: Backend) -> None:
    """A column more for each pinned token and block that goes; else it is said, once."""
    config = replace(CONFIG, max_tokens=3000, hot=16, block=16, keep=1000, backend=backend)
    cache = TwoTierKVCache.from_config(config, rotation=ROTATION)
    cache.append(_draw(2990), _draw(2990))
    held = cache.size()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keys, _ = cache.update_and_fetch(_draw(40), _draw(40))
    assert keys.shape[2] == held + 40 + 2 * 1000
    fetching._say_of_distances.cache_clear()
    held, mask = cache.size(), cache.make_mask(400)
    with pytest.warns(UserWarning, match="a step of 400 tokens lets others go so often"):
        keys, _ = cache.update_and_fetch(_draw(400), _draw(400))
    assert isinstance(mask, mx.array)
    assert mask.shape == (400, keys.shape[2]) == (400, held + 400)
