"""The decode kernels' own text, executed here, against attention over the decoded tiers."""

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcache import CacheError
from kvcache.gpu import TierDecoder
from kvcache.gpu.kernel import Dialect, Launcher
from tests.metal.build import Mode, find_compiler
from tests.metal.cases import BLOCKS, CODECS, PAIRS, SHAPES, TIERS, TURNS, UNREAD, WINDOWS
from tests.metal.emulator import Emulator, Order
from tests.metal.samples import Case, make, tolerance

pytestmark = pytest.mark.skipif(
    find_compiler() is None, reason="needs clang++ 18 or newer on x86-64 Linux"
)


def attend(case: Case, launch: Launcher) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """What the kernels give and what they should."""
    sample = make(case)
    out = TierDecoder(launch=launch, threadgroups=case.threadgroups).attend(
        sample.q, sample.held, sample.sight, scale=sample.scale
    )
    assert out.dtype == case.query
    return np.array(out.astype(mx.float32), dtype=np.float64), sample.expected


def check(case: Case, launch: Launcher) -> None:
    got, expected = attend(case, launch)
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance(case))


@pytest.mark.parametrize("name", CODECS)
def test_every_codec_for_keys_and_values(name: str) -> None:
    check(CODECS[name], Emulator())


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape(name: str) -> None:
    check(SHAPES[name], Emulator())


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_any_length(name: str) -> None:
    check(BLOCKS[name], Emulator())


@pytest.mark.parametrize("name", TIERS)
def test_every_state_of_the_tiers(name: str) -> None:
    check(TIERS[name], Emulator())


@pytest.mark.parametrize("name", TURNS)
def test_every_way_of_turning_for_pinned_tokens(name: str) -> None:
    check(TURNS[name], Emulator())


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_at_the_edges_of_tiles(name: str) -> None:
    check(WINDOWS[name], Emulator())


@pytest.mark.parametrize("name", ["two launches", "cold of many spans", "window moves"])
def test_as_cuda(name: str) -> None:
    check(TIERS[name], Emulator(dialect=Dialect.CUDA))


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_codecs_as_cuda(pair: tuple[str, str]) -> None:
    case = Case(keys=pair[0], values=pair[1], dim=80, block=40, dtype=mx.bfloat16)
    check(case, Emulator(dialect=Dialect.CUDA, order=Order.BACKWARD))


@settings(max_examples=40)
@given(data=st.data())
def test_any_state_of_the_tiers(data: st.DataObject) -> None:
    segments = data.draw(st.sampled_from([(1,), (2, 3), (1, 1, 2), (1, 2, 2, 5)]))
    slots = sum(segments)
    ring = data.draw(st.integers(1, 100))
    check(
        Case(
            new=3,
            segments=segments,
            slots=slots,
            first_slot=data.draw(st.integers(0, slots - 1)),
            blocks=data.draw(st.integers(0, slots)),
            pinned=data.draw(st.integers(0, 140)),
            ring=ring,
            hot_start=data.draw(st.integers(0, ring - 1)),
            hot=data.draw(st.integers(0, ring)),
            evicted=data.draw(st.integers(0, 10**6)),
            window_step=data.draw(st.integers(0, 200)),
            threadgroups=data.draw(st.sampled_from([1, 6, 512])),
            seed=data.draw(st.integers(0, 99)),
        ),
        Emulator(),
    )


@pytest.mark.parametrize("seed", range(4))
def test_threads_in_any_order(seed: int) -> None:
    order = Order.BACKWARD if seed == 0 else Order.RANDOM
    for case in (TIERS["cold of many spans"], TIERS["pinned many"], TIERS["two launches"]):
        check(case, Emulator(order=order, seed=seed))


@pytest.mark.parametrize("pair", PAIRS, ids="/".join)
def test_memory_is_kept_to(pair: tuple[str, str]) -> None:
    case = Case(keys=pair[0], values=pair[1], dim=80, block=40, batch=2, group=2)
    check(case, Emulator(mode=Mode.MEMORY))


@pytest.mark.parametrize(
    "pair", [("hkivi4", "turbo4u"), ("hkivi5", "turbo3u"), ("q4", "kvarn4")], ids="/".join
)
def test_no_races(pair: tuple[str, str]) -> None:
    case = Case(keys=pair[0], values=pair[1], blocks=5, kv_heads=1, ring=161, hot=161)
    check(case, Emulator(mode=Mode.RACES, order=Order.RANDOM))


@pytest.mark.parametrize("name", UNREAD)
def test_a_codec_without_kernel_is_told(name: str) -> None:
    with pytest.raises(CacheError, match=f"no GPU kernel reads codec {name}"):
        attend(Case(keys=name), Emulator())


@pytest.mark.parametrize(
    ("case", "told"),
    [
        (Case(dim=264, keys="q4", values="q4"), "multiples of 8 up to 256"),
        (Case(dim=72, keys="q4", values="q4"), "no GPU kernel reads codec q4 of head dimension 72"),
        (Case(dim=68, blocks=0), "multiples of 8 up to 256"),
    ],
    ids=["too wide", "groups of 36", "no multiple of 8"],
)
def test_a_head_dimension_without_kernel_is_told(case: Case, told: str) -> None:
    with pytest.raises(CacheError, match=told):
        attend(case, Emulator())
