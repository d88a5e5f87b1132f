"""What the cache's figures say about single tokens, and how they change.

A token is in exactly one of sink, hot, cold, evicted. In the order of the
conversation: sinks first, then the evicted, then the cold, then the hot.
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum

from kvcache.stats import CacheStats

_KEPT_EVENTS = 100


class Tier(Enum):
    """Where a token is. OUTSIDE: the model has not read it."""

    SINK = "sink"
    HOT = "hot"
    COLD = "cold"
    EVICTED = "evicted"
    OUTSIDE = "outside"


def tier_at(position: float, stats: CacheStats) -> Tier:
    """The tier of the token at a position of the conversation."""
    edge = 0
    for tier, count in (
        (Tier.SINK, stats.sink),
        (Tier.EVICTED, stats.evicted),
        (Tier.COLD, stats.cold),
        (Tier.HOT, stats.hot),
    ):
        edge += count
        if position < edge:
            return tier
    return Tier.OUTSIDE


@dataclass(frozen=True, kw_only=True)
class TierEvent:
    """Tokens moved to another tier. ratio: cold bytes over the same tokens' bytes in f16."""

    at: float
    tier: Tier
    tokens: int
    ratio: float | None = None


class TierLog:
    """Tells from successive figures which tokens went cold, were let go or were forgotten."""

    def __init__(self) -> None:
        self.events: deque[TierEvent] = deque(maxlen=_KEPT_EVENTS)
        self._last: CacheStats | None = None

    def observe(self, at: float, stats: CacheStats) -> None:
        """Compare with the figures of the last call."""
        last, self._last = self._last, stats
        if last is None or stats == last:
            return
        if stats.total < last.total:
            self.events.append(TierEvent(at=at, tier=Tier.OUTSIDE, tokens=last.total - stats.total))
            return
        evicted = stats.evicted - last.evicted
        went_cold = stats.cold - last.cold + evicted
        if went_cold > 0:
            self.events.append(
                TierEvent(at=at, tier=Tier.COLD, tokens=went_cold, ratio=cold_share(stats))
            )
        if evicted > 0:
            self.events.append(TierEvent(at=at, tier=Tier.EVICTED, tokens=evicted))

    def forget(self) -> None:
        """Another model's cache comes next."""
        self._last = None


def cold_share(stats: CacheStats) -> float | None:
    """Bytes of the cold tier over what its tokens would take in f16; None where it is empty."""
    held = stats.held
    if not stats.cold or not stats.fp16_bytes:
        return None
    return stats.cold_bytes / (stats.fp16_bytes * stats.cold / held)


def bits_per_element(size: int, tokens: int, token_bytes_f16: float) -> float | None:
    """Bits that one key or value element takes; None for no tokens."""
    if not tokens or not token_bytes_f16:
        return None
    return 16 * size / (tokens * token_bytes_f16)


def f16_token_bytes(stats: CacheStats) -> float:
    """Bytes of one token in f16; 0.0 for an empty cache."""
    held = stats.held
    return stats.fp16_bytes / held if held else 0.0
