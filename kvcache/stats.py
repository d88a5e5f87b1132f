"""Figures of a cache: how many tokens each tier holds and what they cost.

Plain integers, read without evaluating an array, so that a user interface may
take them from another thread at any time.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class CacheStats:
    """Tokens and bytes by tier. A token is in exactly one of sink, hot, cold, evicted.

    total: tokens ever appended (and not trimmed) = sink + hot + cold + evicted.
    *_bytes: bytes of the keys and values that the tier holds now.
    allocated_bytes: bytes of the buffers behind them.
    fp16_bytes: what the held tokens would take in fp16.
    """

    total: int
    sink: int
    hot: int
    cold: int
    evicted: int
    sink_bytes: int
    hot_bytes: int
    cold_bytes: int
    allocated_bytes: int
    fp16_bytes: int

    @property
    def held_bytes(self) -> int:
        """Bytes of all held tokens."""
        return self.sink_bytes + self.hot_bytes + self.cold_bytes

    @property
    def ratio(self) -> float:
        """fp16 bytes of the held tokens over their real bytes; 1.0 for an empty cache."""
        return self.fp16_bytes / self.held_bytes if self.held_bytes else 1.0

    def as_dict(self) -> dict[str, int | float]:
        """All fields and `ratio`, for JSON."""
        return asdict(self) | {"ratio": self.ratio}


def sum_layers(layers: Iterable[CacheStats]) -> CacheStats:
    """The stats of a whole model: bytes added over layers, token counts of the first.

    All layers of one sequence hold the same tokens. Raises ValueError for no layer.
    """
    every = list(layers)
    if not every:
        raise ValueError("got no layer, expected at least one")
    first = every[0]
    return CacheStats(
        total=first.total,
        sink=first.sink,
        hot=first.hot,
        cold=first.cold,
        evicted=first.evicted,
        sink_bytes=sum(s.sink_bytes for s in every),
        hot_bytes=sum(s.hot_bytes for s in every),
        cold_bytes=sum(s.cold_bytes for s in every),
        allocated_bytes=sum(s.allocated_bytes for s in every),
        fp16_bytes=sum(s.fp16_bytes for s in every),
    )
