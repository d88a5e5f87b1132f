"""The two-tier cache against a list of tokens under the same rules."""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcache import Backend, CacheConfig, HotDtype, TwoTierKVCache
from kvcache.ledger import TierSizes
from kvcache.plan import LayerPlan
from kvcache.rotation import Rotation
from tests.kvcache.naive_two_tier import NaiveTwoTier, coder, host_coders

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
        codecs = plan.key_codec, plan.value_codec
        if plan.backend is Backend.CPU:
            keys, values = host_coders(*codecs, plan.sizes.block)
        else:
            keys, values = coder(codecs[0]), coder(codecs[1])
        naive = NaiveTwoTier(plan.sizes, keys, values, PERIODS)
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

    def check(self) -> None:
        stats, naive = self.cache.stats(), self.naive
        assert (stats.total, stats.evicted) == (naive.total, naive.evicted)
        tiers = naive.count("sink"), naive.count("hot"), naive.count("cold")
        assert (stats.sink, stats.hot, stats.cold) == tiers
        if naive.tokens:
            np.testing.assert_allclose(np.asarray(self.cache.keys()), naive.held_keys(), atol=1e-5)
            np.testing.assert_allclose(
                np.asarray(self.cache.values()), naive.held_values(), atol=1e-5
            )


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


def _run(plan: LayerPlan, steps: list[tuple[str, int]], batch: int) -> None:
    pair = Pair.of(plan, batch=batch)
    for name, length in steps:
        getattr(pair, name)(length)
        pair.check()


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])
@settings(max_examples=40, deadline=None)
@given(sizes=_sizes(st.integers(1, 7)), steps=STEPS, kv=CODECS, batch=st.integers(1, 2))
def test_any_history_equals_the_naive_cache(
    backend: Backend,
    sizes: TierSizes,
    steps: list[tuple[str, int]],
    kv: tuple[str, str],
    batch: int,
) -> None:
    _run(make_plan(sizes, kv, backend), steps, batch)


@settings(max_examples=40, deadline=None)
@given(sizes=_sizes(st.just(32)), steps=STEPS, kv=CODECS, scale=st.integers(1, 5))
def test_native_blocks_equal_the_naive_cache(
    sizes: TierSizes, steps: list[tuple[str, int]], kv: tuple[str, str], scale: int
) -> None:
    longer = [(name, length * scale) for name, length in steps]
    _run(make_plan(sizes, kv, Backend.CPU), longer, batch=1)
