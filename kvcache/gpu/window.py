"""Who sees what, for the queries of a prompt step: a word where one says it all, else a mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import mlx.core as mx

Mask = mx.array | Literal["causal"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Tokens of consecutive positions."""

    first: int
    count: int

    @property
    def stop(self) -> int:
        """The position after the last."""
        return self.first + self.count


@dataclass(frozen=True, kw_only=True)
class Window:
    """lowest [L]: the oldest position that each query sees, but for the first `pinned` ones.

    position: of the first query.
    """

    lowest: tuple[int, ...]
    position: int
    pinned: int
    scale: float

    def mask(self, runs: Sequence[Run]) -> Mask:
        """Of the tokens of all runs: [L, S], or the word where it says it all."""
        last = self.position + len(self.lowest)
        unpinned = [run for run in runs if run.stop > self.pinned]
        whole = all(max(self.lowest) <= max(run.first, self.pinned) for run in unpinned)
        if whole and runs[-1].stop == last:
            return "causal"
        return mx.concatenate([part for run in runs for part in self._parts(run)], axis=1)

    def sees(self, run: Run) -> mx.array:
        """Whether each query sees the tokens of a run: [L, run.count]."""
        return mx.concatenate(self._parts(run), axis=1)

    def _parts(self, run: Run) -> list[mx.array]:
        """Of a run, side by side. Most tokens are seen by all: only the ends are compared."""
        begin = min(max(max(self.lowest), self.pinned, run.first), run.stop)
        end = max(begin, min(self.position + 1, run.stop))
        ones = mx.broadcast_to(mx.array(True), (len(self.lowest), end - begin))
        return [self._compared(run.first, begin), ones, self._compared(end, run.stop)]

    def _compared(self, first: int, stop: int) -> mx.array:
        positions = mx.arange(first, stop)
        own = self.position + mx.arange(len(self.lowest))[:, None]
        kept = (positions >= mx.array(self.lowest)[:, None]) | (positions < self.pinned)
        return kept & (positions <= own)
