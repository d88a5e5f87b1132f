"""The two-tier cache on the GPU kernels' text, against a list of tokens under the same rules."""

from typing import Any

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcache import TwoTierKVCache, holding
from kvcache.codecs.feedback import LayerMetric
from kvcache.gpu import TierDecoder, TierEncoder, TierPrefill
from kvcache.tiers.gpu import GpuTiers
from kvcache.tiers.ledger import TierSizes
from kvcache.tiers.plan import LayerPlan
from tests.kvcache.test_two_tier import WALK, Pair, make_plan
from tests.metal.build import find_compiler
from tests.metal.emulator import Emulator
from tests.metal.recording import Recorder, zeros

pytestmark = pytest.mark.skipif(
    find_compiler() is None, reason="needs clang++ 18 or newer on x86-64 Linux"
)
STEPS = st.lists(
    st.tuples(st.sampled_from(["append", "attend", "attend", "rewind"]), st.integers(1, 23)),
    min_size=1,
    max_size=6,
)


def _on_gpu(sizes: TierSizes, kv: tuple[str, str]) -> Pair:
    pair = Pair.of(make_plan(sizes, kv))
    pair.cache._memory = _emulated(pair.cache.plan)
    return pair


def _emulated(plan: LayerPlan, metric: LayerMetric | None = None) -> GpuTiers:
    launch = Emulator()
    return GpuTiers(
        plan,
        metric,
        decoder=TierDecoder(launch=launch),
        prefill=TierPrefill(launch=launch),
        encoder=TierEncoder(launch=launch),
    )


@pytest.mark.parametrize("kv", [("hkivi4", "turbo4u"), ("kvarn4", "q4")])
@settings(max_examples=12)
@given(
    pinned=st.integers(0, 5),
    hot=st.integers(0, 9),
    slots=st.integers(0, 9),
    steps=STEPS,
)
def test_any_history_equals_the_naive_cache(
    kv: tuple[str, str], pinned: int, hot: int, slots: int, steps: list[tuple[str, int]]
) -> None:
    pair = _on_gpu(TierSizes(pinned=pinned, hot=hot, block=5, slots=slots), kv)
    for name, length in steps:
        getattr(pair, name)(length)
        pair.check()


@settings(max_examples=10)
@given(
    window=st.sampled_from([1, 4, 5, 6, 13]),
    hot=st.sampled_from([3, 99]),
    steps=STEPS,
)
def test_a_window_equals_the_naive_cache(
    window: int, hot: int, steps: list[tuple[str, int]]
) -> None:
    pair = _on_gpu(TierSizes.of_window(window, hot=hot, block=5), ("hkivi4", "turbo4u"))
    for name, length in [*steps, ("attend", 17), ("attend", 1)]:
        getattr(pair, name)(length)
        pair.check()


@settings(max_examples=12)
@given(pinned=st.integers(0, 5), hot=st.integers(0, 9), slots=st.integers(0, 9), steps=WALK)
def test_any_change_of_plans_equals_the_naive_cache(
    pinned: int, hot: int, slots: int, steps: list[tuple[Any, ...]]
) -> None:
    sizes, kv = TierSizes(pinned=pinned, hot=hot, block=5, slots=slots), ("hkivi4", "turbo4u")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holding, "make_tiers", _emulated)
        pair = Pair.of(make_plan(sizes, kv))
        for name, *given_to in steps:
            if name == "set_policy":
                pair.set_policy(make_plan(*given_to))
            else:
                getattr(pair, name)(*given_to)
            pair.check()
        pair.attend(1)


@pytest.mark.parametrize("length", [1, 8, 9, 40])
def test_the_kernels_really_attend(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = _on_gpu(TierSizes(pinned=3, hot=6, block=5, slots=4), ("hkivi4", "turbo4u"))
    pair.append(60)

    def fail(*_: object) -> None:
        raise AssertionError("attended in plain MLX")

    monkeypatch.setattr("kvcache.tiers.memory.attend_tiers", fail)
    pair.attend(length)


@pytest.mark.parametrize(
    ("kv", "slots"), [(("turbo3p", "turbo3p"), 4), (("f16", "q4"), 4), (("turbo3p", "q4"), 0)]
)
def test_what_no_kernel_reads_is_attended_in_plain_mlx_and_said(
    kv: tuple[str, str], slots: int
) -> None:
    """Their f16 is float32, as the tiers hold it. Without cold blocks codecs do not count."""
    pair = _on_gpu(TierSizes(pinned=3, hot=6, block=5, slots=slots), kv)
    pair.append(60)
    assert pair.cache.stats().plain == (slots > 0)
    pair.attend(3)
    pair.attend(30)
    pair.check()


def test_a_decoded_token_slices_no_tier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels get whole buffers; nothing is cut for a fallback that does not run."""
    recorder = Recorder()
    plan = make_plan(TierSizes(pinned=3, hot=6, block=5, slots=4), ("hkivi4", "turbo4u"))
    cache = TwoTierKVCache(plan)
    cache._memory = GpuTiers(
        plan, decoder=TierDecoder(launch=recorder), encoder=TierEncoder(launch=zeros)
    )
    q, k, v = (mx.random.normal((1, heads, 61, 16)) for heads in (6, 2, 2))
    cache.append(k[:, :, :60], v[:, :, :60])
    snapshot = cache._memory.snapshot(cache.ledger)
    buffers = [*(snapshot.pinned or ()), *(snapshot.hot or ()), *cache._memory._cold.pending()]
    assert len(buffers) > 8
    last = [x[:, :, 60:] for x in (q, k, v)]
    sliced: list[mx.array] = []

    def cut(array: mx.array, where: object) -> mx.array:
        sliced.append(array)
        return plain(array, where)

    plain = mx.array.__getitem__
    monkeypatch.setattr(mx.array, "__getitem__", cut)
    cache.attend(*last, scale=0.3)
    assert not any(array is buffer for array in sliced for buffer in buffers)
    inputs = [array for call in recorder.calls for array in call.inputs]
    assert all(any(array is buffer for array in inputs) for buffer in buffers)
    cache.keys()
    assert any(array is buffer for array in sliced for buffer in buffers)
