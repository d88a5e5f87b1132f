"""Which steps a network's own kernel may take, and what a cache lends it."""

from ctypes import c_double
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from kvcache import Backend, CacheConfig, Rotation, TwoTierKVCache
from kvcache.tiers.cpu_step import CpuStep
from kvcache.tiers.ledger import TierSizes
from kvcache.tiers.plan import LayerPlan

SHAPE = 3, 2, 32
ROTATION = Rotation(periods=100.0 ** np.linspace(0, 1, 13), traditional=True)
CONFIG = CacheConfig(
    max_tokens=90, hot=20, block=16, sinks=5, keys="h8", values="h8", backend=Backend.CPU
)


def _cache(config: CacheConfig = CONFIG, rotation: Rotation | None = ROTATION) -> TwoTierKVCache:
    return TwoTierKVCache.from_config(config, rotation=rotation)


def _filled(cache: TwoTierKVCache, tokens: int) -> TwoTierKVCache:
    batch, heads, dim = SHAPE
    k = mx.random.normal((batch, heads, tokens, dim), key=mx.random.key(tokens))
    cache.append(k, -k)
    return cache


def _step(cache: TwoTierKVCache, length: int = 7) -> CpuStep:
    (step,) = cache.steps(SHAPE, length)
    return step


def test_a_step_tells_where_its_tokens_go() -> None:
    cache = _filled(_cache(), 113)
    step = _step(cache, 9)
    struct = step.struct(heads=6, scale=0.25)
    assert (struct.batch, struct.kv_heads, struct.dim) == SHAPE
    assert (struct.length, struct.heads, struct.scale, struct.pairs) == (9, 6, 0.25, 13)
    assert (struct.total, struct.first, struct.end) == (113, 2, 5)
    after = cache.ledger.appended(9)
    assert (struct.next_first, struct.next_end) == (after.first, after.end) == (3, 6)
    gone = [cache.ledger.evicted_before(position) for position in range(113, 122)]
    assert list(step._gone) == gone
    assert list(step._lowest) == [5 + each for each in gone]


def test_what_is_lent_is_the_memory_itself_and_counts_once_committed() -> None:
    cache = _filled(_cache(), 41)
    step = _step(cache)
    (first,), (again,) = cache.lend([step]), cache.lend([step])
    assert first is again
    assert cache.offset == 41
    cache.commit([step])
    assert (cache.offset, cache.ledger) == (48, step.after)
    assert cache.lend([step]) == []


@pytest.mark.parametrize("window", [1, 15, 16, 17, 37])
@pytest.mark.parametrize("hot", [3, 99])
def test_a_layer_with_a_window_has_steps_of_its_own(window: int, hot: int) -> None:
    sizes = TierSizes.of_window(window, hot=hot, block=16)
    cache, other = (
        _filled(TwoTierKVCache(LayerPlan.of(CONFIG, sizes, layer), rotation=ROTATION), 70)
        for layer in range(2)
    )
    whole, step = _filled(_cache(), 70), _step(cache, 9)
    assert len(other.lend([step])) == 1
    assert (cache.lend([_step(whole, 9)]), whole.lend([step])) == ([], [])
    assert list(step._lowest) == [70 + at + 1 - window for at in range(9)]
    struct = step.struct(heads=6, scale=0.25)
    assert (struct.pinned, struct.pairs, struct.slots) == (0, 0, sizes.slots)


@pytest.mark.parametrize("shape", [(3, 2, 24), (1, 1, 8)])
def test_heads_that_kernels_do_not_read_are_not_taken(shape: tuple[int, int, int]) -> None:
    assert _cache().steps(shape, 3) == []


@pytest.mark.parametrize("traditional", [True, False])
def test_pairs_outside_of_heads_are_not_taken(traditional: bool) -> None:
    rotation = replace(ROTATION, traditional=traditional)
    step = _step(_cache(rotation=rotation))
    assert step.struct(heads=2, scale=1.0).apart == (not traditional)
    outside = replace(rotation, periods=np.ones(17))
    assert _cache(rotation=outside).steps(SHAPE, 3) == []
    assert len(_cache(replace(CONFIG, turn_sinks=False), outside).steps(SHAPE, 3)) == 1


def test_new_sinks_are_not_taken_with_what_lets_tokens_go() -> None:
    assert len(_cache().steps(SHAPE, 89)) == 1
    assert _cache().steps(SHAPE, 90) == []
    assert len(_filled(_cache(), 5).steps(SHAPE, 90)) == 1


OTHERS = {
    "more tokens": _filled(_cache(), 42),
    "another temperature": _filled(_cache(replace(CONFIG, temperature=1.5)), 41),
    "another check": _filled(_cache(replace(CONFIG, check_finite=False)), 41),
    "sinks that stay": _filled(_cache(replace(CONFIG, turn_sinks=False)), 41),
    "another rope": _filled(
        _cache(rotation=Rotation(periods=2 * ROTATION.periods, traditional=True)), 41
    ),
    "a codec of MLX's": _filled(_cache(replace(CONFIG, values="turbo4p")), 41),
    "plain MLX": _filled(_cache(replace(CONFIG, backend=Backend.REFERENCE)), 41),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_layer_that_is_unlike_the_first_lends_nothing(other: TwoTierKVCache) -> None:
    assert other.lend([_step(_filled(_cache(), 41))]) == []


def test_tokens_of_another_shape_are_lent_nothing() -> None:
    assert _cache().lend([_step(_filled(_cache(), 41))]) == []
    batch, heads, dim = SHAPE
    cache = _filled(_cache(), 41)
    steps = cache.steps((batch + 1, heads, dim), 7)
    assert len(steps) == 1
    assert cache.lend(steps) == []


def test_periods_are_read_as_doubles_side_by_side() -> None:
    periods = ROTATION.periods.astype(np.float32)[::-1]
    step = _step(_cache(rotation=Rotation(periods=periods, traditional=True)))
    found = (c_double * 13).from_address(step.struct(heads=2, scale=1.0).periods)
    assert list(found) == list(periods)


def test_a_rope_that_was_saved_is_the_same_rope() -> None:
    cache = _filled(_cache(), 41)
    restored = TwoTierKVCache.from_state(cache.state, backend=Backend.CPU)
    assert restored.rotation is not cache.rotation
    assert len(restored.lend([_step(cache)])) == 1
