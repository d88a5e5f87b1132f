import pytest

from app.chat.tier_counts import (
    Tier,
    TierLog,
    rewound,
    share_of_f16,
    tier_at,
)
from tests.app.service.scripted_service import layer_stats


def test_every_token_is_in_one_tier() -> None:
    (stats,) = layer_stats(sink=4, hot=7, cold=11, evicted=5, layers=1)
    tiers = [tier_at(position, stats) for position in range(29)]
    assert tiers == (
        [Tier.SINK] * 4
        + [Tier.EVICTED] * 5
        + [Tier.COLD] * 11
        + [Tier.HOT] * 7
        + [Tier.OUTSIDE] * 2
    )


def test_moves_are_logged_once() -> None:
    log = TierLog()
    for figures in (
        {"hot": 100},
        {"hot": 100},
        {"hot": 64, "cold": 64},
        {"hot": 64, "cold": 64, "evicted": 32},
        {"hot": 40},
    ):
        log.observe(5.0, layer_stats(layers=1, **figures))
    assert [(event.tier, event.tokens) for event in log.events] == [
        (Tier.COLD, 64),
        (Tier.COLD, 32),
        (Tier.EVICTED, 32),
        (Tier.OUTSIDE, 120),
    ]


def test_shares_and_bits_count_held_tokens_only() -> None:
    layers = layer_stats(sink=4, hot=8, cold=64, evicted=1000, layers=3)
    assert share_of_f16(layers, Tier.COLD) == pytest.approx(4.5 / 16)
    assert share_of_f16(layers, Tier.HOT) == 1.0
    assert share_of_f16(layer_stats(hot=3, layers=1), Tier.COLD) is None
    assert share_of_f16(layer_stats(layers=1), Tier.HOT) is None


def test_shares_are_of_layers_that_hold_different_tokens() -> None:
    """A layer with a window has no sinks and few cold tokens, or none."""
    layers = [
        *layer_stats(sink=4, hot=8, cold=640, layers=1),
        *layer_stats(hot=50, evicted=602, layers=1),
        *layer_stats(hot=8, cold=64, evicted=580, layers=1),
    ]
    assert share_of_f16(layers, Tier.COLD) == pytest.approx(4.5 / 16)
    assert (share_of_f16(layers, Tier.SINK), share_of_f16(layers, Tier.HOT)) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("shared", "end", "expected"),
    [
        (200, 200, (4, 50, 100, 46)),  # all of it is still held
        (150, 150, (4, 0, 100, 46)),  # what was let go for the last 50 comes again
        (120, 150, (4, 0, 100, 16)),  # another variant, as long, is to be read
        (120, 300, (4, 50, 66, 0)),  # a longer one pushes out no less
        (2, 3, (2, 0, 0, 0)),
        (0, 0, (0, 0, 0, 0)),
    ],
)
def test_figures_of_a_conversation_that_was_taken_back_in_part(
    shared: int, end: int, expected: tuple[int, ...]
) -> None:
    (total,) = layer_stats(sink=4, evicted=50, cold=100, hot=46, layers=1)
    found = rewound(total, shared=shared, end=end)
    assert (found.sink, found.evicted, found.cold, found.hot) == expected
    assert found.total == shared
