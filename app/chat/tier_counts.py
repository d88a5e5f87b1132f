"""What the cache's figures say about single tokens, and how they change.

A token is in exactly one of sink, hot, cold, evicted. In the order of the
conversation: sinks first, then the evicted, then the cold, then the hot.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from kvcache.stats import CacheStats, sum_layers

_KEPT_EVENTS = 100
_HELD = (
    *("total", "sink", "hot", "cold", "evicted"),
    *("sink_bytes", "hot_bytes", "cold_bytes", "fp16_bytes"),
)


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

    def observe(self, at: float, layers: Sequence[CacheStats]) -> None:
        """Compare with the figures of the last call, of all layers."""
        stats = sum_layers(layers)
        last, self._last = self._last, stats
        if last is None or stats == last:
            return
        if stats.total < last.total:
            self.events.append(TierEvent(at=at, tier=Tier.OUTSIDE, tokens=last.total - stats.total))
            return
        evicted = stats.evicted - last.evicted
        went_cold = stats.cold - last.cold + evicted
        if went_cold > 0:
            ratio = share_of_f16(layers, Tier.COLD)
            self.events.append(TierEvent(at=at, tier=Tier.COLD, tokens=went_cold, ratio=ratio))
        if evicted > 0:
            self.events.append(TierEvent(at=at, tier=Tier.EVICTED, tokens=evicted))

    def forget(self) -> None:
        """Another model's cache comes next."""
        self._last = None


def emptied(layers: Sequence[CacheStats]) -> list[CacheStats]:
    """The same caches with no token in them."""
    return [
        CacheStats(
            **dict.fromkeys(_HELD, 0),
            allocated_bytes=each.allocated_bytes,
            sinks_turned=each.sinks_turned,
            plain=each.plain,
        )
        for each in layers
    ]


def rewound(total: CacheStats, *, shared: int, end: int) -> CacheStats:
    """The figures of a cache that is to hold another conversation of `end` tokens.

    shared: so many of them it holds, or has let go, already. What was let go for tokens that are
    taken back comes again.
    """
    sink = min(total.sink, shared)
    evicted = max(total.evicted - max(total.total - end, 0), 0)
    evicted = min(evicted, shared - sink)
    cold = min(total.cold, shared - sink - evicted)
    hot = shared - sink - evicted - cold
    return replace(total, total=shared, sink=sink, evicted=evicted, cold=cold, hot=hot)


def share_of_f16(layers: Sequence[CacheStats], tier: Tier) -> float | None:
    """Bytes of a tier over what its tokens would take in f16; None where it is empty.

    Layers may hold more or fewer tokens in it.
    """
    held = [layer for layer in layers if layer.held]
    in_f16 = sum(getattr(each, tier.value) * each.fp16_bytes / each.held for each in held)
    return sum(getattr(each, f"{tier.value}_bytes") for each in held) / in_f16 if in_f16 else None
