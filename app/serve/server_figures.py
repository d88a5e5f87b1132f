"""What a server does now, in numbers: for `/stats`, and for whoever started it.

Plain numbers that the computing thread notes, and any thread reads.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from app.pace import Pace
from kvcache.stats import CacheStats, sum_rows

_TIERS = ("sink", "hot", "cold", "evicted")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One look at a server.

    running, waiting: sequences that are computed, and that wait for a place; places: how many
    there are. window: tokens of each. tokens: of running sequences by tier. budget_bytes: of all
    caches; running_bytes, kept_bytes: what running ones hold, and prompts kept for later. kept:
    how many those are. requests: answered or begun; hits: that began with what was kept, of
    cached_tokens in all. prompt_tokens, answer_tokens: computed so far; tokens_per_second: of
    answers, over the last ten seconds.
    """

    model: str = ""
    window: int = 0
    places: int = 0
    running: int = 0
    waiting: int = 0
    tokens: dict[str, int] = field(default_factory=dict)
    budget_bytes: int = 0
    running_bytes: int = 0
    kept_bytes: int = 0
    kept: int = 0
    requests: int = 0
    hits: int = 0
    cached_tokens: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    tokens_per_second: float = 0.0

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self) | {"tokens_per_second": round(self.tokens_per_second, 2)}


class Counts:
    """What the computing thread counts up."""

    def __init__(self) -> None:
        self.requests = self.hits = self.cached_tokens = 0
        self.prompt_tokens = self.answer_tokens = 0
        self._pace = Pace()

    def begin(self, prompt: int, cached: int) -> None:
        """A request has its place; so many tokens of its prompt were kept."""
        self.requests += 1
        self.hits += cached > 0
        self.cached_tokens += cached
        self.prompt_tokens += prompt - cached

    @property
    def tokens_per_second(self) -> float:
        """Of answers, over the last ten seconds."""
        self._pace.note(self.answer_tokens, time.monotonic())
        return self._pace.rate


def by_tier(rows: Sequence[CacheStats]) -> dict[str, int]:
    """Tokens of sequences by tier."""
    if not rows:
        return dict.fromkeys(_TIERS, 0)
    every = sum_rows(rows)
    return {tier: getattr(every, tier) for tier in _TIERS}
