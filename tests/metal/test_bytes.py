"""Bytes that the kernels load from device memory, counted load by load, against what is held."""

from math import prod

import mlx.core as mx
import pytest

from kvcache import codec
from kvcache.gpu.shape import CallShape
from kvcache.gpu.traffic import Held, Traffic, traffic
from tests.metal.build import Mode, find_compiler
from tests.metal.emulator import Emulator
from tests.metal.recording import calls_of
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
    unencoded = sum(
        count
        for (stem, name), count in emulator.loads.items()
        if stem == "unencoded" and name.endswith(("_keys", "_values"))
    )
    return cold, unencoded


def formula(case: Case) -> Traffic:
    """What the roofline of `bench` counts with."""
    return traffic(
        CallShape.of(make(case).q.shape, case.kv_heads),
        Held(pinned=case.pinned, hot=case.hot + case.new, blocks=case.blocks, block=case.block),
        keys=codec(case.keys),
        values=codec(case.values),
        hot_bytes=case.dtype.size,
        query_bytes=case.query.size,
        threadgroups=case.threadgroups,
    )


def codecs_bits(case: Case) -> float:
    """Bytes of the encoded tokens by what the codecs say of themselves."""
    bits = sum(
        codec(name).bits_per_element(case.block, case.dim) for name in (case.keys, case.values)
    )
    return bits / 8 * case.blocks * case.block * case.dim * case.batch * case.kv_heads


@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize(
    "pair", ["hkivi5/turbo3u", "kvarn4/kvarn4", "q4/h3", "f16/f16", "q3/kivi5"]
)
def test_each_element_is_loaded_once_for_all_heads_of_a_group(pair: str, group: int) -> None:
    keys, values = pair.split("/")
    case = Case(
        keys=keys, values=values, group=group, segments=SEGMENTS, slots=16, first_slot=7, blocks=13
    )
    cold, unencoded = loads(case)
    expected = formula(case)
    assert expected.cold == pytest.approx(codecs_bits(case))
    assert expected.cold * 0.999 <= cold <= expected.cold * 1.05
    assert unencoded == expected.pinned + expected.hot


@pytest.mark.parametrize(
    "case",
    [
        Case(),
        Case(keys="q4", values="h3", dim=128, group=11, new=2, pinned=0),
        Case(keys="q4", values="q3", blocks=0, pinned=90, group=1),
        Case(segments=SEGMENTS, slots=16, blocks=13, threadgroups=6, batch=2, query=mx.float16),
    ],
    ids=["default", "row parts", "nothing cold", "few spans"],
)
def test_what_is_not_keys_and_values(case: Case) -> None:
    """Outputs of all launches but the last are scratch; each is read once."""
    *parts, merge = calls_of(case)
    expected, written = formula(case), {"cold": 0, "unencoded": 0}
    for call in parts:
        sizes = zip(call.shapes, call.dtypes, strict=True)
        written[call.kernel.stem] += sum(prod(shape) * dtype.size for shape, dtype in sizes)
    assert expected.scratch == 2 * sum(written.values())
    assert expected.output == prod(merge.shapes[0]) * merge.dtypes[0].size
    q = prod(merge.shapes[0]) * case.query.size
    assert expected.queries == (1 + (case.blocks > 0)) * q
    words = [
        array.nbytes
        for call in calls_of(case)
        if call.constants.get("ROTATED", False)
        for name, array in zip(call.kernel.inputs, call.inputs, strict=True)
        if name == "words"
    ]
    assert expected.rotation == sum(words)


def test_sums_of_spans_are_read_once() -> None:
    case = Case(group=5)
    emulator = Emulator(mode=Mode.COUNTING)
    attend(case, emulator)
    read = sum(emulator.loads["merge", f"{tier}_sums"] for tier in ("cold", "unencoded"))
    assert read == formula(case).scratch // 2 * case.dim // (case.dim + 2)


def test_the_lanes_of_a_row_share_the_numbers_of_spans() -> None:
    """Each simdgroup of a row looks at a top twice and at a total once; no thread at all."""
    case = Case(group=1, blocks=40, segments=(40,), slots=40, first_slot=0, kv_heads=4)
    emulator = Emulator(mode=Mode.COUNTING)
    attend(case, emulator)
    read = sum(emulator.loads["merge", f"{tier}_stats"] for tier in ("cold", "unencoded"))
    *_, merge = calls_of(case)
    simdgroups, rows = merge.threadgroup[0] // 32, case.kv_heads
    spans = (merge.inputs[1].size + merge.inputs[3].size) // (2 * rows)
    assert spans > 10
    assert read == simdgroups * rows * spans * 3 * 4


def test_traffic_by_hand() -> None:
    """One row of 4 heads of 64 over a pinned token, 3 hot ones and two blocks of 4 tokens."""
    found = traffic(
        CallShape(batch=1, kv_heads=4, group=1, new=1, dim=64),
        Held(pinned=1, hot=3, blocks=2, block=4),
        keys=codec("q8"),
        values=codec("f16"),
    )
    token = 2 * 64 * 2  # keys and values in float16
    block = 4 * (64 + 2 + 2) + 4 * 64 * 2  # codes, a scale and a zero for 64 channels; values
    assert (found.pinned, found.hot, found.cold) == (4 * token, 4 * 3 * token, 4 * 2 * block)
    assert found.queries == 4 * 64 * 2 * 2
    assert (found.rotation, found.output) == (0, 4 * 64 * 2)
    assert found.scratch == 2 * 4 * 3 * 66 * 4  # one span of each tier, written and read
    assert found.total == found.cache + found.queries + found.scratch + found.output


def test_a_window_that_has_left_a_block_still_reads_it() -> None:
    """Blocks are let go by the cache, not by the kernel."""
    still, moved = (loads(Case(new=2, window_step=step))[0] for step in (0, 100))
    assert still == moved
