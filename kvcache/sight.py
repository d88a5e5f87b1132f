"""Who sees what: the one rule of which tokens a query attends to, and at which distance.

Tokens stand at positions 0, 1, 2, ... as they came. The first `pinned` of them stay, the next
`evicted` were let go, all others are held. The columns of a mask, of `keys()` and of
`update_and_fetch` are the held and the new tokens in the order of positions. Knows no tiers,
no memory and no kernels.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import mlx.core as mx

from kvcache.errors import CacheError
from kvcache.reference import Mask, check_mask
from kvcache.turn import Rotation


@dataclass(frozen=True, kw_only=True, eq=False)
class Sight:
    """What L queries at consecutive positions see.

    position: of the first query.
    gone: for each query, the tokens let go by the time that it comes.
    total: position of the first new token.
    window: how many positions a query sees, its own the last; None: all.
    new: tokens beyond the held ones that are looked at too.
    mask: "causal": a query at p sees pinned tokens up to p, and every other
    token from its `lowest` to p. None: all. An array broadcasts to
    [B, Hq, L, columns] and is taken as it is.
    rotation: the rope, so that pinned tokens are met as if none was let go; None:
    at their true distance.
    """

    position: int
    gone: tuple[int, ...]
    total: int
    pinned: int = 0
    evicted: int = 0
    window: int | None = None
    new: int = 0
    mask: Mask = "causal"
    rotation: Rotation | None = None

    def __post_init__(self) -> None:
        check_mask(self.mask)
        if isinstance(self.mask, mx.array) and self.mask.shape[-1] != self.columns:
            raise CacheError(
                f"got a mask of {self.mask.shape[-1]} columns, expected {self.columns}: "
                f"{self.columns - self.new} held tokens and {self.new} new ones"
            )

    @classmethod
    def of_all(cls, queries: int, held: int) -> "Sight":
        """The last `queries` of `held` tokens, of which none was let go, see one another."""
        return cls(position=held - queries, gone=(0,) * queries, total=held)

    @property
    def queries(self) -> int:
        """L."""
        return len(self.gone)

    @property
    def columns(self) -> int:
        """Tokens that can be seen."""
        return self.total + self.new - self.evicted

    @cached_property
    def lowest(self) -> tuple[int, ...]:
        """The oldest position that each query sees beside pinned tokens.

        0 where nothing was let go: new pinned tokens then come as any others.
        """
        held = (self.pinned + gone if gone else 0 for gone in self.gone)
        if self.window is None:
            return tuple(held)
        oldest = self.position + 1 - self.window
        return tuple(map(max, held, range(oldest, oldest + self.queries)))

    @cached_property
    def suits_kernels(self) -> bool:
        """Whether kernels take it: they see held pinned tokens whole, new ones as any others."""
        behind = self.position >= min(self.total, self.pinned)
        pins = self.new > 0 and self.total < self.pinned
        return self.mask == "causal" and behind and not (pins and any(self.gone))

    # -- which turns a query needs --

    @cached_property
    def turns(self) -> tuple[int, ...]:
        """By how much each query turns for pinned tokens: back by what was let go before it."""
        return tuple(-gone if self.rotation else 0 for gone in self.gone)

    def turned(self, q: mx.array) -> mx.array:
        """The queries [B, Hq, L, D] as they meet pinned tokens."""
        return self.rotation(q, self.turns) if self.rotation else q

    @cached_property
    def turning(self) -> tuple[tuple[int, int], ...]:
        """The turns that there are, one after the other, and how many queries turn so."""
        return tuple((turn, len(list(alike))) for turn, alike in groupby(self.turns))

    # -- which tokens a query sees --

    @property
    def is_whole(self) -> bool:
        """Whether "causal" says it all: the last query's is the last column, none is too old."""
        last = self.position + self.queries == self.total + self.new
        return self.mask == "causal" and last and max(self.lowest) <= self.pinned + self.evicted

    def of(self, first: int, count: int) -> mx.array | None:
        """The mask [..., L, count] of the tokens from position `first`; None: all are seen.

        They are held or new, and not on both sides of a gap.
        """
        if isinstance(self.mask, mx.array):
            column = first if first < self.pinned else first - self.evicted
            return self.mask[..., column : column + count]
        stop, seen = first + count, self.seen_by_all(first, count)
        if self.mask is None or len(seen) == count:
            return None
        ones = mx.broadcast_to(mx.array(True), (self.queries, len(seen)))
        parts = [self.compared(first, seen.start), ones, self.compared(seen.stop, stop)]
        return mx.concatenate(parts, axis=1)

    def seen_by_all(self, first: int, count: int) -> range:
        """The positions, of `count` from `first` on, that a causal rule shows to every query.

        Most are, and those before and after them alone need to be `compared`.
        """
        stop = first + count
        begin = first if stop <= self.pinned else min(stop, max(first, *self.lowest))
        return range(begin, max(begin, min(self.position + 1, stop)))

    def hides(self, first: int, count: int) -> bool:
        """Whether no query sees any of these tokens, none of them pinned."""
        return self.mask == "causal" and first + count <= min(self.lowest)

    @cached_property
    def whole(self) -> mx.array:
        """The rule as one boolean array [L, columns]; the same object each time."""
        masks = [
            mx.ones((self.queries, len(span)), mx.bool_)
            if (mask := self.of(span.start, len(span))) is None
            else mask
            for span in self._spans()
            if span
        ]
        return mx.concatenate(masks, axis=1)

    def full(self, window: int | None = None) -> mx.array:
        """The rule as one boolean array [L, columns]; with the last `window` positions alone."""
        if window is None:
            return self.whole
        columns = mx.concatenate([mx.arange(span.start, span.stop) for span in self._spans()])
        return self.whole & (self._rows() < columns + window)

    def _spans(self) -> tuple[range, range]:
        """The positions of the columns: pinned ones and, behind the gap, all others."""
        end, start = self.total + self.new, self.pinned + self.evicted
        return range(min(self.pinned, end)), range(start, max(start, end))

    def _rows(self) -> mx.array:
        """[L, 1]: the positions of the queries."""
        return mx.arange(self.position, self.position + self.queries)[:, None]

    def compared(self, first: int, stop: int) -> mx.array:
        """The causal rule of the positions [first, stop), one by one: boolean [L, stop - first]."""
        tokens = mx.arange(first, stop)
        kept = (tokens >= mx.array(self.lowest)[:, None]) | (tokens < self.pinned)
        return kept & (tokens <= self._rows())
