import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcache import CacheError
from kvcache.ledger import Ledger, TierSizes

SIZES = TierSizes(pinned=4, hot=10, block=3, slots=5)


@pytest.mark.parametrize(
    ("total", "sink", "hot", "cold", "evicted"),
    [
        (0, 0, 0, 0, 0),
        (3, 3, 0, 0, 0),
        (4, 4, 0, 0, 0),
        (4 + 12, 4, 12, 0, 0),  # the ring is full: hot + block - 1
        (4 + 13, 4, 10, 3, 0),  # one more completes a block that is not hot
        (4 + 15 + 12, 4, 12, 15, 0),  # all tiers exactly full
        (4 + 15 + 13, 4, 10, 15, 3),  # one over
        (4 + 2 * 15 + 25, 4, 10, 15, 30),  # two wraps
    ],
)
def test_tokens_by_tier(total: int, sink: int, hot: int, cold: int, evicted: int) -> None:
    ledger = Ledger(sizes=SIZES).appended(total)
    assert (ledger.sink, ledger.hot, ledger.cold, ledger.evicted) == (sink, hot, cold, evicted)
    assert ledger.held == total - evicted


@given(steps=st.lists(st.integers(1, 40), max_size=12))
def test_how_tokens_arrive_does_not_matter(steps: list[int]) -> None:
    one_by_one = Ledger(sizes=SIZES)
    for step in steps:
        one_by_one = one_by_one.appended(step)
    assert one_by_one == Ledger(sizes=SIZES).appended(sum(steps))
    assert one_by_one.held <= SIZES.max_tokens == 4 + 15 + 12


@pytest.mark.parametrize(
    ("back", "total", "hot", "cold"),
    [
        (0, 59, 10, 15),
        (7, 52, 3, 15),  # among hot tokens: exactly
        (10, 49, 0, 15),  # to the edge between the tiers
        (11, 46, 0, 12),  # into a cold block: to its beginning
        (22, 37, 0, 3),
        (23, 0, 0, 0),  # what comes before is evicted: to the beginning
    ],
)
def test_rewinding(back: int, total: int, hot: int, cold: int) -> None:
    ledger = Ledger(sizes=SIZES).appended(59).rewound(back)
    assert (ledger.total, ledger.hot, ledger.cold) == (total, hot, cold)
    assert ledger.evicted == (30 if total >= 37 else 0)


def test_rewinding_keeps_sinks_while_nothing_is_evicted() -> None:
    ledger = Ledger(sizes=SIZES).appended(20)
    assert ledger.cold == 6
    assert ledger.rewound(15).total == 4
    assert ledger.rewound(18).total == 2
    assert ledger.rewound(999).total == 0


def test_what_a_query_sees_moves_by_blocks() -> None:
    ledger = Ledger(sizes=SIZES).appended(31)
    assert [ledger.lowest(position) for position in (31, 32, 34, 35, 38)] == [4, 7, 7, 10, 13]


def test_the_window_is_used_in_whole_blocks() -> None:
    sizes = TierSizes.within(1024, pinned=4, hot=256, block=64)
    assert (sizes.slots, sizes.max_tokens) == (10, 963)
    assert TierSizes.within(68, pinned=4, hot=256, block=64).hot == 1
    with pytest.raises(CacheError, match="a window of 67 tokens does not hold 4 pinned tokens"):
        TierSizes.within(67, pinned=4, hot=256, block=64)
    with pytest.raises(CacheError, match="got block=0, expected at least 1"):
        TierSizes(pinned=0, hot=0, block=0, slots=0)
