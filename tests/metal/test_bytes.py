"""Bytes that the kernels load from device memory, counted load by load, against what is held."""

import pytest

from tests.metal.build import Mode, find_compiler
from tests.metal.emulator import Emulator
from tests.metal.samples import Case, make
from tests.metal.test_decode import attend

pytestmark = pytest.mark.skipif(
    find_compiler() is None, reason="needs clang++ 18 or newer on x86-64 Linux"
)

SEGMENTS = (2, 2, 4, 8)


def loads(case: Case) -> tuple[int, int]:
    """Bytes of keys and values loaded from the cold tier, and from the others."""
    emulator = Emulator(mode=Mode.COUNTING)
    attend(case, emulator)
    cold = sum(
        count
        for (stem, name), count in emulator.loads.items()
        if stem == "cold" and name.startswith(("key_", "value_"))
    )
    dense = sum(
        count
        for (stem, name), count in emulator.loads.items()
        if stem == "dense" and name.endswith(("_keys", "_values"))
    )
    return cold, dense


def held(case: Case) -> tuple[float, int]:
    """Bytes of the tokens that are attended to: by the codecs' own bits, and in float16."""
    cold = make(case).tiers.cold
    assert cold
    heads = case.batch * case.kv_heads
    bits = sum(
        codec.bits_per_element(case.block, case.dim) for codec in (cold.key_codec, cold.value_codec)
    )
    encoded = bits / 8 * case.blocks * case.block * case.dim * heads
    return encoded, 2 * 2 * (case.pinned + case.hot + case.new) * case.dim * heads


@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize(
    "pair", ["hkivi5/turbo3u", "kvarn4/kvarn4", "q4/h3", "f16/f16", "q3/kivi5"]
)
def test_each_element_is_loaded_once_for_all_heads_of_a_group(pair: str, group: int) -> None:
    keys, values = pair.split("/")
    case = Case(
        keys=keys, values=values, group=group, segments=SEGMENTS, slots=16, first_slot=7, blocks=13
    )
    cold, dense = loads(case)
    encoded, plain = held(case)
    assert encoded * 0.999 <= cold <= encoded * 1.05
    assert dense == plain


def test_a_window_that_has_left_a_block_still_reads_it() -> None:
    """Blocks are let go by the cache, not by the kernel."""
    still, moved = (loads(Case(new=2, window_step=step))[0] for step in (0, 100))
    assert still == moved
