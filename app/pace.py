"""How fast bytes come, and when all of them will be here.

Knows no clock: whoever notes a count says when that was.
"""

from collections import deque

# The rate is that of so many seconds before.
_SECONDS = 10.0


class Pace:
    """Counts of bytes, noted as they grow. What was there at the first is not counted."""

    def __init__(self) -> None:
        self._noted: deque[tuple[float, int]] = deque()

    def note(self, done: int, at: float) -> None:
        """So many bytes are here at a time; fewer than before begin anew."""
        if self._noted and done < self._noted[-1][1]:
            self._noted.clear()
        self._noted.append((at, done))
        while len(self._noted) > 2 and at - self._noted[1][0] >= _SECONDS:
            self._noted.popleft()

    @property
    def rate(self) -> float:
        """Bytes a second; 0 while that cannot be told."""
        if len(self._noted) < 2:
            return 0.0
        (began, first), (now, last) = self._noted[0], self._noted[-1]
        return (last - first) / (now - began) if now > began else 0.0

    def left(self, total: int) -> float | None:
        """Seconds until `total` bytes are here, None while that cannot be told."""
        rate = self.rate
        return (total - self._noted[-1][1]) / rate if rate > 0 else None
