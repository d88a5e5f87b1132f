"""Layers of one model that hold different tokens, taken together."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcache import (
    Backend,
    CacheConfig,
    CacheError,
    HotDtype,
    ModelShape,
    Rotation,
    TwoTierKVCache,
    resolve,
)
from kvcache.prompt_cache import (
    each_layer,
    few_are_alike,
    from_plan,
    rewind,
    rows_from_plan,
    set_policy,
)
from kvcache.stats import sum_layers
from kvcache.tiers.plan import CachePlan
from kvcache.turn import NO_ROPE

HKV, HQ, DIM = 2, 6, 16
WIDTH = HQ * DIM
SCALE = 0.3
ROPE = Rotation(periods=10.0 ** (np.arange(DIM // 2) / 3), traditional=True)
WINDOWS = (11, None, 11, 7)
BACKENDS = pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])


def _plan(backend: Backend = Backend.REFERENCE, **fields: Any) -> CachePlan:
    windows = fields.pop("windows", WINDOWS)
    fields = {"max_tokens": 100, "hot": 3, "block": 4, "sinks": 3} | fields
    config = CacheConfig(
        keys="f16", values="f16", hot_dtype=HotDtype.F32, backend=backend, **fields
    )
    shape = ModelShape(
        layers=len(windows), kv_heads=HKV, head_dim=DIM, context=1000, windows=windows
    )
    return resolve(config, shape)


class Network:
    """Layers of attention with a residual stream, so that each layer meets what others saw."""

    def __init__(self, layers: int) -> None:
        rng = np.random.default_rng(9)
        sizes = [(WIDTH, (HQ + 2 * HKV) * DIM)] * layers
        self.weights = [mx.array(rng.normal(size=s).astype(np.float32) / 8) for s in sizes]
        self.words = mx.array(rng.normal(size=(999, WIDTH)).astype(np.float32))

    def __call__(self, ids: Sequence[int], caches: Sequence[TwoTierKVCache]) -> mx.array:
        """The vectors [L, WIDTH] after all layers."""
        x = self.words[mx.array(list(ids))][None]
        for weight, cache in zip(self.weights, caches, strict=True):
            heads = mx.unflatten(x @ weight, -1, (-1, DIM)).swapaxes(1, 2)
            q, k, v = mx.split(heads, [HQ, HQ + HKV], axis=1)
            by = list(range(cache.offset, cache.offset + len(ids)))
            seen = cache.attend(ROPE(q, by), ROPE(k, by), v, scale=SCALE)
            x = x + seen.swapaxes(1, 2).flatten(2)
        return x[0]


NETWORK = Network(len(WINDOWS))
HISTORY = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30)), min_size=1, max_size=5)


@BACKENDS
@settings(max_examples=25)
@given(first=st.integers(1, 60), history=HISTORY)
def test_what_follows_a_rewind_is_as_if_fed_anew(
    backend: Backend, first: int, history: list[tuple[int, int]]
) -> None:
    """Where nothing that sees all is let go, in the order that a chat has."""
    plan = _plan(backend, max_tokens=400)
    caches, ids = from_plan(plan, ROPE), list(range(first))
    NETWORK(ids, caches)
    for back, more in history:
        kept = max(0, len(ids) - back)
        ids = [*ids[:kept], *(500 + len(ids) + at for at in range(more))]
        start = rewind(caches, plan, tokens=kept, total=len(ids))
        assert start <= kept
        assert {cache.offset for cache in caches} == {start}
        got = NETWORK(ids[start:], caches)
        want = NETWORK(ids, from_plan(plan, ROPE))
        np.testing.assert_allclose(got[-more:], want[-more:], atol=2e-2)


def test_a_short_rewind_computes_nothing_again() -> None:
    plan = _plan(max_tokens=400)
    caches = from_plan(plan, ROPE)
    NETWORK(range(83), caches)
    # The windows hold up to a block beyond what the next token sees.
    assert rewind(caches, plan, tokens=82, total=99) == 82
    assert rewind(caches, plan, tokens=72, total=99) == 0
    assert {cache.size() for cache in caches} == {0}


def test_while_windows_are_not_full_any_rewind_is_cheap() -> None:
    plan = _plan(max_tokens=400, windows=(64, None, 64), hot=3)
    caches = from_plan(plan, ROPE)
    Network(3)(range(50), caches)
    assert rewind(caches, plan, tokens=17, total=60) == 15  # the edge of a cold block: 3 + 3 * 4
    assert [cache.size() for cache in caches] == [15, 15, 15]


def test_a_sequence_that_does_not_fit_goes_on_behind_what_is_let_go() -> None:
    plan = _plan(max_tokens=60)
    caches = from_plan(plan, ROPE)
    NETWORK(range(150), caches)
    start = rewind(caches, plan, tokens=120, total=140)
    whole = caches[1]
    assert start == whole.ledger.pinned + whole.ledger.evicted
    assert 140 - start <= plan.max_tokens - 3
    assert {cache.offset for cache in caches} == {start}
    assert [cache.size() for cache in caches] == [0, 3, 0, 0]
    NETWORK(range(start, 140), caches)
    assert 60 - 4 <= whole.stats().held <= plan.max_tokens
    # Whole windows again: nothing is lost.
    assert rewind(caches, plan, tokens=140, total=141) == 140


def test_where_all_layers_have_windows() -> None:
    plan = _plan(windows=(5, 5), max_tokens=60)
    caches, network = from_plan(plan, ROPE), Network(2)
    network(range(50), caches)
    assert rewind(caches, plan, tokens=50, total=55) == 50
    assert rewind(caches, plan, tokens=20, total=55) == 0
    network(range(100), caches)
    assert rewind(caches, plan, tokens=20, total=90) == 39  # as a layer that sees all


@BACKENDS
def test_a_batch_of_rows_has_windows_too(backend: Backend) -> None:
    plan, lengths = _plan(backend), (37, 30, 5)
    rows = rows_from_plan(plan, ROPE, left_padding=[37 - n for n in lengths])
    alone = [from_plan(plan, ROPE) for _ in lengths]
    for layer in range(len(WINDOWS)):
        for new in (37, 1, 9):
            q, k, v = (
                mx.random.normal((3, heads, new, DIM), key=mx.random.key(7 * new + heads + at))
                for at, heads in enumerate((HQ, HKV, HKV))
            )
            got = rows[layer].attend(q, k, v, scale=SCALE)
            for row, length in enumerate(lengths):
                some = slice(new - length, None) if new == 37 else slice(None)
                one = (x[row : row + 1, :, some] for x in (q, k, v))
                want = alone[row][layer].attend(*one, scale=SCALE)
                np.testing.assert_allclose(got[row : row + 1, :, some], want, atol=1e-3)


@BACKENDS
def test_another_policy_keeps_windows_whole(backend: Backend) -> None:
    plan = _plan(backend, max_tokens=400)
    caches, alone = (from_plan(plan, ROPE) for _ in range(2))
    NETWORK(range(90), caches)
    NETWORK(range(90), alone)
    set_policy(caches, _plan(backend, block=7, hot=30, max_tokens=300))
    assert [cache.plan.sizes.block for cache in caches] == [7] * 4
    for ids in (range(90, 91), range(91, 130), range(130, 131)):
        np.testing.assert_allclose(NETWORK(ids, caches), NETWORK(ids, alone), atol=2e-2)


def test_a_policy_that_does_not_suit_a_window_changes_no_layer() -> None:
    """A layer that sees no more than others hold would need the sinks that it let go."""
    caches = from_plan(_plan(windows=(None, 11)), ROPE)
    Network(2)(range(50), caches)
    before = [cache.plan for cache in caches]
    with pytest.raises(CacheError, match="got 3 pinned tokens, but the cache was made with 0"):
        set_policy(caches, _plan(windows=(None, 11), max_tokens=11))
    assert [cache.plan for cache in caches] == before


def test_a_policy_of_another_number_of_layers_changes_none() -> None:
    caches = from_plan(_plan(windows=(None, 11)), ROPE)
    before = [cache.plan for cache in caches]
    with pytest.raises(CacheError, match="got a plan of 4 layers for 2 caches, expected as many"):
        set_policy(caches, _plan(max_tokens=300))
    assert [cache.plan for cache in caches] == before


def test_stats_are_of_the_layer_that_holds_most() -> None:
    caches = from_plan(_plan(), ROPE)
    NETWORK(range(90), caches)
    layers = [cache.stats() for cache in caches]
    whole = sum_layers(layers)
    assert (whole.held, whole.sink, whole.evicted) == (90, 3, 0)
    assert whole.held_bytes == sum(layer.held_bytes for layer in layers)
    assert [layer.held for layer in layers] == [14, 90, 14, 10]  # to the block's edge
    assert all(layer.total == layer.held + layer.evicted for layer in layers)


def test_each_layer_has_its_rope_or_none() -> None:
    plan = _plan(windows=(None, 5, None))
    caches = from_plan(plan, [None, ROPE, ROPE])
    assert [cache.rotation for cache in caches] == [None, None, ROPE]
    assert all(cache.stats().sinks_turned for cache in caches)
    assert not any(cache.stats().sinks_turned for cache in from_plan(plan, None))
    assert each_layer([None, ROPE], 2) == [NO_ROPE, ROPE]
    with pytest.raises(CacheError, match="got ropes of 2 layers, expected 3"):
        from_plan(plan, [ROPE, ROPE])


@BACKENDS
def test_without_a_rope_sinks_are_met_as_they_are(backend: Backend) -> None:
    """What is let go between makes no difference where position is nothing."""
    plan = _plan(backend, windows=(None,), max_tokens=30)
    (cache,) = from_plan(plan, [None])
    q, k, v = (mx.random.normal((1, n, 80, DIM), key=mx.random.key(n)) for n in (HQ, HKV, 3))
    v = v[:, :HKV]
    cache.append(k[:, :, :79], v[:, :, :79])
    last = [x[:, :, 79:] for x in (q, k, v)]
    held = np.asarray(cache.keys()), np.asarray(cache.values())
    got = cache.attend(*last, scale=SCALE)
    keys, values = (
        mx.concatenate([mx.array(x), y], axis=2) for x, y in zip(held, last[1:], strict=True)
    )
    want = mx.fast.scaled_dot_product_attention(last[0], keys, values, scale=SCALE)
    np.testing.assert_allclose(got, want, atol=1e-3)
    loaded = TwoTierKVCache.from_state(cache.state, backend=backend)
    assert loaded.stats().sinks_turned


def test_few_tokens_are_alike_where_every_layer_is_read_by_the_kernels() -> None:
    fields: dict[str, Any] = {"block": 16, "windows": (None,) * 4}
    assert few_are_alike(_plan(Backend.CPU, by_layer=("q8", "f16", "turbo2", "q8/q4"), **fields))
    assert not few_are_alike(_plan(by_layer=("q8",) * 4, **fields))
    for unread in range(4):
        layers = ["turbo3p" if at == unread else "q8" for at in range(4)]
        assert not few_are_alike(_plan(Backend.CPU, by_layer=tuple(layers), **fields))
