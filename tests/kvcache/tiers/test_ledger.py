import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvcache import CacheError
from kvcache.tiers.ledger import Ledger, TierSizes

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
    assert (ledger.pinned, ledger.hot, ledger.cold, ledger.evicted) == (sink, hot, cold, evicted)
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
        (23, 4, 0, 0),  # what comes before is evicted: to the pinned tokens
        (57, 2, 0, 0),
    ],
)
def test_rewinding(back: int, total: int, hot: int, cold: int) -> None:
    ledger = Ledger(sizes=SIZES).appended(59).rewound(back)
    assert (ledger.total, ledger.hot, ledger.cold) == (total, hot, cold)
    assert ledger.evicted == (30 if total >= 37 else 0)


@pytest.mark.parametrize("total", [20, 59])
def test_rewinding_keeps_sinks(total: int) -> None:
    ledger = Ledger(sizes=SIZES).appended(total)
    assert ledger.cold
    assert ledger.rewound(total - 5).total == 4
    assert ledger.rewound(total - 2) == Ledger(sizes=SIZES, total=2)
    assert ledger.rewound(999).total == 0


def test_what_was_let_go_and_fits_again_is_known_and_made_room_for() -> None:
    sizes = TierSizes(pinned=4, hot=10, block=3, slots=5)  # holds 31
    ledger = Ledger(sizes=sizes).appended(59)
    assert ledger.evicted == 30
    assert not ledger.must_restart(59)
    # Fed anew, a block is let go at 32, 35, ... 59 tokens.
    assert all(ledger.rewound(10).must_restart(total) for total in (50, 56, 58))
    assert not any(ledger.rewound(10).must_restart(total) for total in (59, 62, 90))
    for total in (31, 32, 58):
        restarted = ledger.rewound(10).restarted(total)
        assert (restarted.held, restarted.pinned) == (4, 4)
        again = restarted.appended(total - restarted.total)
        assert again.held == Ledger(sizes=sizes).appended(total).held
        assert not again.must_restart(total)
    # Of a long sequence that was lost but for its pinned tokens, only the end is fed again.
    assert Ledger(sizes=sizes, total=4).must_restart(59)
    assert not Ledger(sizes=sizes, total=4).must_restart(31)
    assert Ledger(sizes=sizes, total=3).restarted(99) == Ledger(sizes=sizes, total=3)


@pytest.mark.parametrize("block", [1, 2, 5])
def test_the_last_token_is_fed_again_where_its_coming_lets_all_others_go(block: int) -> None:
    sizes = TierSizes(pinned=4, hot=0, block=block, slots=0)
    for total in range(4 + block, 40):
        restarted = Ledger(sizes=sizes, total=4).restarted(total)
        assert 1 <= total - restarted.total <= block
        again = restarted.appended(total - restarted.total)
        assert (again.held, again.evicted) == (4 + (total - 4) % block, total - again.held)


def test_a_cache_that_never_goes_back_lacks_nothing() -> None:
    ledger = Ledger(sizes=SIZES)
    for step in (7, 30, 1, 1, 1, 1, 64, 2, 3):
        assert not ledger.must_restart(ledger.total + step)
        ledger = ledger.appended(step)


PLANS = st.builds(
    TierSizes,
    pinned=st.just(4),
    hot=st.integers(0, 40),
    block=st.integers(1, 300),
    slots=st.integers(0, 6),
)


@given(sizes=st.lists(PLANS, min_size=2, max_size=5), steps=st.lists(st.integers(-200, 200)))
def test_every_token_is_in_one_tier_whatever_sizes_follow(
    sizes: list[TierSizes], steps: list[int]
) -> None:
    ledger = Ledger(sizes=sizes[0])
    for at, step in enumerate([*steps, 37]):
        ledger = ledger.appended(step) if step > 0 else ledger.rewound(-step)
        before = ledger
        ledger = ledger.resized(sizes[at % len(sizes)])
        assert ledger.total == ledger.pinned + ledger.evicted + ledger.cold + ledger.hot
        assert 0 <= ledger.hot <= ledger.sizes.ring
        assert 0 <= ledger.cold <= ledger.sizes.slots * ledger.sizes.block
        # All that the sizes have room for, but for a block that is not whole.
        room = min(before.held, ledger.sizes.max_tokens)
        assert room - ledger.sizes.block < ledger.held <= room
        assert ledger.evicted >= before.evicted


def test_other_pinned_tokens_while_all_are_held() -> None:
    ledger = Ledger(sizes=SIZES).appended(25)
    more = ledger.resized(TierSizes(pinned=9, hot=2, block=5, slots=3))
    assert (more.pinned, more.cold, more.hot) == (9, 10, 6)
    with pytest.raises(CacheError, match="got 9 pinned tokens, but the cache was made with 4"):
        ledger.appended(9).resized(more.sizes)


def test_what_a_query_sees_moves_by_blocks() -> None:
    ledger = Ledger(sizes=SIZES).appended(31)
    sight = ledger.sight(31, 8)
    assert [sight.lowest[at] for at in (0, 1, 3, 4, 7)] == [0, 7, 7, 10, 13]


def test_the_window_is_used_in_whole_blocks() -> None:
    sizes = TierSizes.within(1024, pinned=4, hot=256, block=64)
    assert (sizes.slots, sizes.max_tokens) == (10, 963)
    assert TierSizes.within(68, pinned=4, hot=256, block=64).hot == 1
    with pytest.raises(CacheError, match="a window of 67 tokens does not hold 4 pinned tokens"):
        TierSizes.within(67, pinned=4, hot=256, block=64)
    with pytest.raises(CacheError, match="got block=0, expected at least 1"):
        TierSizes(pinned=0, hot=0, block=0, slots=0)


@given(
    sizes=st.one_of(
        st.builds(
            TierSizes,
            pinned=st.integers(0, 5),
            hot=st.integers(0, 20),
            block=st.integers(1, 9),
            slots=st.integers(0, 3),
        ),
        st.builds(
            TierSizes.of_window, st.integers(1, 40), hot=st.integers(0, 20), block=st.integers(1, 9)
        ),
    ),
    before=st.integers(0, 120),
    origin=st.integers(0, 9),
    share=st.floats(0, 1),
)
def test_what_has_room_is_taken_back_as_if_it_had_not_come(
    sizes: TierSizes, before: int, origin: int, share: float
) -> None:
    held = Ledger(sizes=sizes).appended(before)
    if before > sizes.pinned and not sizes.window:
        held = held.emptied(before).appended(origin)
    assert held.appended(held.room).end == held.end
    assert held.appended(held.room + 1).end > held.end
    for count in range(held.room + 1):
        stay = round(share * count)
        assert held.appended(count).rewound(count - stay) == held.appended(stay)
