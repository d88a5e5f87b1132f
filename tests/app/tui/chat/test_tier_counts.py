import pytest

from app.tui.chat.tier_counts import (
    Tier,
    TierLog,
    share_of_f16,
    tier_at,
)
from tests.app.tui.scripted_service import layer_stats


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
