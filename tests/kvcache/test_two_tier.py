"""The two-tier cache against a list of tokens under the same rules."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcache import Backend, CacheConfig, CacheError, HotDtype, TwoTierKVCache
from kvcache.tiers.ledger import TierSizes
from kvcache.tiers.plan import LayerPlan
from kvcache.turn import Rotation
from tests.kvcache.naive_two_tier import Coder, NaiveTwoTier, coder, cpu_coders

HKV, HQ, DIM = 2, 6, 16
PERIODS = 10.0 ** (np.arange(DIM // 2) / 3)
SCALE = 0.31

Array = npt.NDArray[np.float32]


def make_plan(
    sizes: TierSizes, kv: tuple[str, str] = ("f16", "f16"), backend: Backend = Backend.REFERENCE
) -> LayerPlan:
    config = CacheConfig(keys=kv[0], values=kv[1], hot_dtype=HotDtype.F32, backend=backend)
    return LayerPlan.of(config, sizes, layer=3)


@dataclass
class Pair:
    """A cache and its oracle, fed alike."""

    cache: TwoTierKVCache
    naive: NaiveTwoTier
    batch: int
    rng: np.random.Generator

    @classmethod
    def of(cls, plan: LayerPlan, *, batch: int = 1) -> "Pair":
        rotation = Rotation(periods=PERIODS, traditional=True)
        naive = NaiveTwoTier(plan.sizes, *_coders(plan), PERIODS)
        return cls(TwoTierKVCache(plan, rotation=rotation), naive, batch, np.random.default_rng(5))

    def draw(self, heads: int, length: int) -> Array:
        return self.rng.normal(size=(self.batch, heads, length, DIM)).astype(np.float32)

    def append(self, length: int) -> None:
        k, v = self.draw(HKV, length), self.draw(HKV, length)
        self.cache.append(mx.array(k), mx.array(v))
        self.naive.append(k.astype(np.float64), v.astype(np.float64))

    def attend(self, length: int) -> None:
        q, k, v = self.draw(HQ, length), self.draw(HKV, length), self.draw(HKV, length)
        got = self.cache.attend(mx.array(q), mx.array(k), mx.array(v), scale=SCALE)
        wide = (x.astype(np.float64) for x in (q, k, v))
        want = self.naive.attend(*wide, scale=SCALE)
        # The kernels take queries and weights in 15 bits.
        atol = 5e-4 if self.cache.plan.backend is Backend.CPU else 1e-4
        np.testing.assert_allclose(np.asarray(got), want, atol=atol)

    def rewind(self, length: int) -> None:
        before = self.cache.offset
        assert self.cache.rewind(length) == before - self.cache.offset
        self.naive.rewind(length)

    def trim(self, length: int) -> None:
        exact, offset = self.cache.ledger.droppable, self.cache.offset
        if min(length, offset) > exact:
            with pytest.raises(CacheError, match=f"tokens to trim, expected at most {exact}"):
                self.cache.trim(length)
            assert self.cache.offset == offset
        assert self.cache.trim(min(length, exact)) == min(length, exact)
        self.naive.rewind(min(length, exact))

    def restart(self, length: int) -> None:
        """What was let go and fits `length` more tokens is fed anew: then as if never gone."""
        total = self.cache.offset + length
        fresh = TwoTierKVCache(self.cache.plan)
        fresh.append(*(mx.zeros((1, 1, total, DIM)) for _ in range(2)))
        needed = self.cache.ledger.must_restart(total)
        if needed:
            self.cache.ledger = self.cache.ledger.restarted(total)
            self.naive.restart(total)
        self.append(total - self.cache.offset)
        assert self.cache.stats().evicted <= fresh.stats().evicted
        assert not needed or self.cache.size() == fresh.size()

    def save_and_load(self) -> None:
        self.cache = TwoTierKVCache.from_state(self.cache.state, backend=self.cache.plan.backend)

    def clear(self) -> None:
        self.cache.clear()
        self.naive.rewind(self.naive.total)

    def set_policy(self, plan: LayerPlan) -> None:
        before = self.cache.stats()
        if plan.sizes.pinned != self.cache.plan.sizes.pinned and before.evicted:
            with pytest.raises(CacheError, match="pinned tokens, but the cache was made with"):
                self.cache.set_policy(plan)
            assert self.cache.stats() == before
            return
        # Both go on from the same decoded tokens, which `check` has compared.
        held = [np.zeros(0)] * 2
        if before.held:
            arrays = self.cache.keys(), self.cache.values()
            held = [np.asarray(array).astype(np.float64) for array in arrays]
        self.cache.set_policy(plan)
        self.naive.replan(plan.sizes, *_coders(plan), (held[0], held[1]))
        assert self.cache.stats().total == before.total

    def check_counts(self) -> None:
        stats, naive = self.cache.stats(), self.naive
        assert stats.total == stats.sink + stats.hot + stats.cold + stats.evicted
        assert stats.held <= self.cache.plan.sizes.max_tokens
        assert (stats.total, stats.evicted) == (naive.total, naive.evicted)
        tiers = naive.count("pinned"), naive.count("hot"), naive.count("cold")
        assert (stats.sink, stats.hot, stats.cold) == tiers

    def check(self) -> None:
        self.check_counts()
        naive = self.naive
        if naive.tokens:
            np.testing.assert_allclose(np.asarray(self.cache.keys()), naive.held_keys(), atol=1e-5)
            np.testing.assert_allclose(
                np.asarray(self.cache.values()), naive.held_values(), atol=1e-5
            )


def _coders(plan: LayerPlan) -> tuple[Coder, Coder]:
    codecs = plan.codecs
    if plan.backend is Backend.CPU:
        return cpu_coders(*codecs, plan.sizes.block)
    return coder(codecs[0]), coder(codecs[1])


STEPS = st.lists(
    st.tuples(st.sampled_from(["append", "attend", "attend", "rewind"]), st.integers(1, 23)),
    min_size=1,
    max_size=7,
)
CODECS = st.sampled_from(
    [("f16", "f16"), ("h8", "turbo3u"), ("hkivi5", "q4"), ("kvarn4", "f16"), ("q6", "turbo4p")]
)


def _sizes(block: st.SearchStrategy[int]) -> st.SearchStrategy[TierSizes]:
    return st.builds(
        TierSizes,
        pinned=st.integers(0, 5),
        hot=st.integers(0, 9),
        block=block,
        slots=st.integers(0, 9),
    )


def _windows(block: st.SearchStrategy[int]) -> st.SearchStrategy[TierSizes]:
    return st.builds(
        TierSizes.of_window,
        st.one_of(st.sampled_from([1, 31, 32, 33, 37]), st.integers(1, 60)),
        hot=st.one_of(st.just(99), st.integers(0, 9)),
        block=block,
    )


def _run(plan: LayerPlan, steps: list[tuple[str, int]], batch: int) -> None:
    pair = Pair.of(plan, batch=batch)
    for name, length in steps:
        getattr(pair, name)(length)
        pair.check()


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])
@settings(max_examples=40)
@given(sizes=_sizes(st.integers(1, 7)), steps=STEPS, kv=CODECS, batch=st.integers(1, 2))
def test_any_history_equals_the_naive_cache(
    backend: Backend,
    sizes: TierSizes,
    steps: list[tuple[str, int]],
    kv: tuple[str, str],
    batch: int,
) -> None:
    _run(make_plan(sizes, kv, backend), steps, batch)


@settings(max_examples=40)
@given(sizes=_sizes(st.just(32)), steps=STEPS, kv=CODECS, scale=st.integers(1, 5))
def test_blocks_of_the_kernels_equal_the_naive_cache(
    sizes: TierSizes, steps: list[tuple[str, int]], kv: tuple[str, str], scale: int
) -> None:
    longer = [(name, length * scale) for name, length in steps]
    _run(make_plan(sizes, kv, Backend.CPU), longer, batch=1)


# Steps and what they take; plans of any block size, from 1 to more than all that is held.
WALK = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["append", "attend", "rewind", "trim", "restart"]), st.integers(1, 60)
        ),
        st.tuples(st.sampled_from(["save_and_load", "clear"])),
        st.tuples(st.just("set_policy"), _sizes(st.integers(1, 64)), CODECS),
    ),
    min_size=2,
    max_size=9,
)


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])
@settings(max_examples=40)
@given(
    sizes=_windows(st.one_of(st.just(32), st.integers(1, 7))),
    steps=st.lists(
        st.one_of(
            st.tuples(
                st.sampled_from(["append", "attend", "attend", "rewind"]), st.integers(1, 47)
            ),
            st.tuples(st.sampled_from(["save_and_load", "clear"])),
        ),
        min_size=2,
        max_size=9,
    ),
    kv=CODECS,
    batch=st.integers(1, 2),
)
def test_a_window_equals_the_naive_cache(
    backend: Backend,
    sizes: TierSizes,
    steps: list[tuple[Any, ...]],
    kv: tuple[str, str],
    batch: int,
) -> None:
    pair = Pair.of(make_plan(sizes, kv, backend), batch=batch)
    for name, *given_to in [*steps, ("attend", 1), ("attend", 40)]:
        getattr(pair, name)(*given_to)
        pair.check()


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])
@settings(max_examples=60)
@given(sizes=_sizes(st.integers(1, 64)), steps=WALK, kv=CODECS)
def test_any_change_of_plans_equals_the_naive_cache(
    backend: Backend, sizes: TierSizes, steps: list[tuple[Any, ...]], kv: tuple[str, str]
) -> None:
    pair = Pair.of(make_plan(sizes, kv, backend))
    for name, *given_to in steps:
        if name == "set_policy":
            pair.set_policy(make_plan(given_to[0], given_to[1], backend))
        else:
            getattr(pair, name)(*given_to)
        pair.check()
    pair.attend(1)
    pair.check()


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])
@pytest.mark.parametrize(("block", "slots"), [(256, 1), (48, 3), (1, 0), (7, 30)])
def test_blocks_of_another_size_begin_at_the_oldest_held_token(
    backend: Backend, block: int, slots: int
) -> None:
    pair = Pair.of(make_plan(TierSizes(pinned=2, hot=16, block=16, slots=7), backend=backend))
    pair.append(200)
    before = pair.cache.stats()
    plan = make_plan(TierSizes(pinned=2, hot=9, block=block, slots=slots), backend=backend)
    pair.set_policy(plan)
    kept = min(before.held, pair.cache.size())
    assert (pair.cache.offset, pair.cache.stats().evicted) == (200, 200 - kept)
    # As many as the plan has room for, but for the block that is not whole.
    assert min(before.held, plan.sizes.max_tokens) - kept < block
    for length in (1, 30, 1, block, 3):
        pair.attend(length)
        pair.check()
