import pytest

from app.tui.chat.tier_counts import (
    Tier,
    TierLog,
    bits_per_element,
    cold_share,
    f16_token_bytes,
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
        log.observe(5.0, layer_stats(layers=1, **figures)[0])
    assert [(event.tier, event.tokens) for event in log.events] == [
        (Tier.COLD, 64),
        (Tier.COLD, 32),
        (Tier.EVICTED, 32),
        (Tier.OUTSIDE, 120),
    ]


def test_shares_and_bits_count_held_tokens_only() -> None:
    (stats,) = layer_stats(sink=4, hot=8, cold=64, evicted=1000, layers=1)
    assert cold_share(stats) == pytest.approx(9 / 32)
    assert bits_per_element(stats.cold_bytes, stats.cold, f16_token_bytes(stats)) == 4.5
    assert bits_per_element(0, 0, 1024) is None
    assert cold_share(layer_stats(hot=3, layers=1)[0]) is None
