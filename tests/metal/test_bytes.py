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
LINE = 128
_PARTS = ("key_", "value_")
_TIERS = ("_keys", "_values")


def counted(case: Case) -> Emulator:
    """An emulator that has counted what the case loads."""
    emulator = Emulator(mode=Mode.COUNTING)
    attend(case, emulator)
    return emulator


def loads(case: Case) -> tuple[int, int]:
    """Bytes of keys and values loaded from the cold tier, and from the others."""
    found = counted(case).loads
    cold = sum(found[each] for each in found if each[0] == "cold" and each[1].startswith(_PARTS))
    unencoded = sum(
        found[each] for each in found if each[0] == "unencoded" and each[1].endswith(_TIERS)
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


@pytest.mark.parametrize(
    ("pair", "group"),
    [
        *(("hkivi4/turbo4u", group) for group in (1, 3, 8, 16, 33)),
        *((pair, group) for pair in ("kvarn4/kvarn4", "hkivi5/turbo3u") for group in (1, 8)),
        *(("q4/h3", 5), ("q3/kivi5", 6), ("f16/q8", 1), ("f16/q8", 8)),
    ],
)
def test_encoded_tokens_are_loaded_once_for_sixteen_rows(pair: str, group: int) -> None:
    """Unencoded ones by each simdgroup: the others of its team find them in the core's cache."""
    keys, values = pair.split("/")
    case = Case(
        keys=keys,
        values=values,
        group=group,
        segments=SEGMENTS,
        slots=16,
        first_slot=7,
        blocks=13 if group < 9 else 3,
    )
    cold, unencoded = loads(case)
    expected = formula(case)
    assert expected.cold == pytest.approx(codecs_bits(case) * (3 if group == 33 else 1))
    assert expected.cold * 0.999 <= cold <= expected.cold * 1.05
    assert unencoded == (expected.pinned + expected.hot) * CallShape.of(make(case).q.shape, 2).team


@pytest.mark.parametrize(
    ("pair", "dim", "group"),
    [
        *(("hkivi4/turbo4u", dim, group) for dim in (64, 128) for group in (1, 8)),
        *(("hkivi4/turbo4u", 80, 1), ("hkivi5/turbo3u", 64, 8), ("hkivi5/turbo3u", 80, 1)),
        *(("kvarn4/kvarn3", 80, 8), ("kvarn4/kvarn3", 96, 1)),
        *(("q4/h3", 64, 1), ("q4/h3", 80, 8), ("f16/turbo4", 64, 8), ("f16/turbo4", 128, 1)),
    ],
)
def test_a_load_of_a_simdgroup_touches_neighbouring_lines(pair: str, dim: int, group: int) -> None:
    """As many lines as the bytes fill, and a fifth."""
    keys, values = pair.split("/")
    case = Case(keys=keys, values=values, group=group, dim=dim, blocks=3)
    lines = counted(case).lines
    for name, part in ((keys, "key_"), (values, "value_")):
        touched = sum(
            lines[each] for each in lines if each[0] == "cold" and each[1].startswith(part)
        )
        block = sum(spec.nbytes for spec in codec(name).shapes(case.block, dim).values())
        filled = block * case.blocks * case.kv_heads / LINE
        assert filled * 0.999 <= touched <= filled * 1.2


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
