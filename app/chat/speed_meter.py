"""Generation speed as it is felt: now, average, peak, and the last minute.

Fed with token counts and times by whoever has a clock; keeps plain numbers.
"""

from collections import deque
from dataclasses import dataclass

_NOW_SECONDS = 1.0
BIN_SECONDS = 0.5
BINS = 120


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Tokens per second. bins: the last minute in steps of `BIN_SECONDS`, oldest first."""

    now: float = 0.0
    average: float = 0.0
    peak: float = 0.0
    p5: float = 0.0
    bins: tuple[float, ...] = ()


class Meter:
    """Turns token arrivals into speeds; idle time between answers counts nowhere."""

    def __init__(self) -> None:
        self._arrivals: deque[tuple[float, int]] = deque()
        self._bins: deque[float] = deque(maxlen=BINS)
        self._bin_start = 0.0
        self._bin_tokens = 0
        self._tokens = 0
        self._seconds = 0.0
        self._last: float | None = None

    def begin(self, at: float) -> None:
        """The first token of an answer came at time `at`; speed counts from there."""
        self._arrivals.clear()
        self._arrivals.append((at, 0))
        self._last = self._bin_start = at
        self._bin_tokens = 0

    def add(self, at: float, tokens: int) -> None:
        """`tokens` more came, the last at time `at`."""
        if self._last is None:
            self.begin(at)
            return
        self._seconds += at - self._last
        self._last = at
        self._tokens += tokens
        self._arrivals.append((at, tokens))
        while len(self._arrivals) > 2 and self._arrivals[0][0] < at - _NOW_SECONDS:
            self._arrivals.popleft()
        self._fill_bins(at, tokens)

    def end(self) -> None:
        """The answer is over."""
        self._last = None
        self._arrivals.clear()

    def speed(self) -> Speed:
        """The figures at the last arrival."""
        known = sorted(self._bins)
        average = self._tokens / self._seconds if self._seconds else 0.0
        return Speed(
            now=self._now(),
            average=average,
            peak=max(self._now(), average, *known[-1:]),
            p5=known[len(known) // 20] if known else average,
            bins=tuple(self._bins),
        )

    def _now(self) -> float:
        if len(self._arrivals) < 2:
            return 0.0
        span = self._arrivals[-1][0] - self._arrivals[0][0]
        tokens = sum(count for _, count in list(self._arrivals)[1:])
        return tokens / span if span > 0 else 0.0

    def _fill_bins(self, at: float, tokens: int) -> None:
        """Spread what came since the last arrival over the bins that have ended."""
        self._bin_tokens += tokens
        elapsed = at - self._bin_start
        if elapsed < BIN_SECONDS:
            return
        whole = int(elapsed / BIN_SECONDS)
        rate = self._bin_tokens / elapsed
        self._bins.extend([rate] * min(whole, BINS))
        self._bin_start += whole * BIN_SECONDS
        self._bin_tokens = round(rate * (at - self._bin_start))
