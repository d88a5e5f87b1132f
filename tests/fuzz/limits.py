"""What an input may cost before it is refused: seconds of a processor, and memory by its size."""

import time
from collections.abc import Callable

from app.rss import peak_rss
from kvcache import EmberError

SECONDS = 2.0
# Bytes of memory for each of an input, beyond what allocators keep of all inputs before.
MULTIPLE = 64
_ALLOCATORS = 192 << 20


class CostError(AssertionError):
    """An input took more than it may."""


class Limited:
    """A reader whose refusals are no failures, and whose costs are.

    refused, answered: how many inputs it has met. slowest: the most seconds that one took.
    grown: bytes of memory beyond what was held before the first.
    """

    def __init__(
        self,
        read: Callable[[bytes], None],
        *,
        seconds: float = SECONDS,
        peak: Callable[[], int] = peak_rss,
    ) -> None:
        """peak: the most memory that the process has held, in bytes."""
        self._read, self._seconds, self._peak = read, seconds, peak
        self._before: int | None = None
        self.refused = self.answered = 0
        self.slowest, self.grown = 0.0, 0

    def __call__(self, data: bytes) -> None:
        """Raises whatever is no EmberError, CostError, and AssertionError for an error of many
        lines."""
        if self._before is None:
            self._before = self._peak()
        began = time.process_time()
        try:
            self._read(data)
            self.answered += 1
        except EmberError as error:
            self.refused += 1
            said = str(error)
            if not said or "\n" in said:
                raise AssertionError(f"expected an error of one line: {said!r}") from error
        took = time.process_time() - began
        self.slowest = max(self.slowest, took)
        self.grown = self._peak() - self._before
        if took > self._seconds:
            raise CostError(f"{len(data)} bytes took {took:.1f} s, at most {self._seconds:g} may")
        if self.grown > _ALLOCATORS + MULTIPLE * len(data):
            raise CostError(f"{len(data)} bytes took {self.grown >> 20} MiB")
