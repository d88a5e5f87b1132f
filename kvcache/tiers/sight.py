"""What queries see of a two-tier cache: pieces of tokens at known positions, and a rule.

The order of the columns of a mask, of `keys()` and of `update_and_fetch` is the
order of positions: pinned, cold, hot, then the new tokens.
"""

from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx

from kvcache.errors import CacheError
from kvcache.reference import Mask
from kvcache.tiers.ledger import Ledger


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Unencoded tokens [B, Hkv, S, D] of consecutive positions from `position`.

    pinned: attended with the turned query, and never below the window.
    """

    keys: mx.array
    values: mx.array
    position: int
    pinned: bool = False


@dataclass(frozen=True, kw_only=True)
class Sight:
    """The rule of who sees what, for L queries at consecutive positions.

    ledger: the tiers that are looked at; new tokens come after its total.
    position: of the first query.
    new: tokens beyond the ledger's that are looked at too.
    mask: "causal": a query at p sees pinned tokens up to p, and every other
    token from `ledger.lowest(p)` to p. None: all. An array broadcasts to
    [B, Hq, L, columns] and is taken as it is.
    """

    ledger: Ledger
    position: int
    queries: int
    new: int
    mask: Mask

    def __post_init__(self) -> None:
        if isinstance(self.mask, mx.array) and self.mask.shape[-1] != self.columns:
            raise CacheError(
                f"got a mask of {self.mask.shape[-1]} columns, expected {self.columns}: "
                f"{self.ledger.held} held tokens and {self.new} new ones"
            )

    @property
    def columns(self) -> int:
        """Tokens that can be seen."""
        return self.ledger.held + self.new

    @cached_property
    def lowest(self) -> list[int]:
        """The oldest unpinned position that each query may see."""
        if self.mask != "causal":
            return [self.ledger.cold_start] * self.queries
        return [self.ledger.lowest(self.position + i) for i in range(self.queries)]

    @cached_property
    def turns(self) -> list[int]:
        """By how much each query turns for the sinks: back by what was let go before it."""
        return [-self.ledger.evicted_before(self.position + i) for i in range(self.queries)]

    def of(self, position: int, count: int, *, pinned: bool = False) -> mx.array | None:
        """The mask [..., L, count] of the tokens from `position`; None where all are seen."""
        if isinstance(self.mask, mx.array):
            column = position if pinned else position - self.ledger.evicted
            return self.mask[..., column : column + count]
        if self.mask is None:
            return None
        low = 0 if pinned else max(self.lowest)
        if low <= position and position + count - 1 <= self.position:
            return None
        tokens = mx.arange(position, position + count)
        rows = mx.arange(self.position, self.position + self.queries)[:, None]
        seen = tokens <= rows
        return seen if pinned else seen & (tokens >= mx.array(self.lowest)[:, None])

    def hides(self, position: int, count: int) -> bool:
        """Whether no query sees any of these unpinned tokens."""
        return self.mask == "causal" and position + count <= min(self.lowest)

    def full(self, window: int | None = None) -> mx.array:
        """The rule as one boolean array [L, columns]; with the last `window` positions alone."""
        ledger, end = self.ledger, self.ledger.total + self.new
        sinks = min(ledger.sizes.pinned, end)
        parts = [(0, sinks, True), (ledger.cold_start, max(0, end - ledger.cold_start), False)]
        masks = [
            mx.ones((self.queries, count), mx.bool_)
            if (mask := self.of(position, count, pinned=pinned)) is None
            else mask
            for position, count, pinned in parts
            if count
        ]
        whole = mx.concatenate(masks, axis=1)
        if window is None:
            return whole
        rows = mx.arange(self.position, self.position + self.queries)[:, None]
        return whole & (rows < self._positions() + window)

    def _positions(self) -> mx.array:
        """The position of each column."""
        ledger, end = self.ledger, self.ledger.total + self.new
        sinks = mx.arange(min(ledger.sizes.pinned, end))
        return mx.concatenate([sinks, mx.arange(ledger.cold_start, max(ledger.cold_start, end))])


def split_pinned(keys: mx.array, values: mx.array, position: int, pinned: int) -> list[Piece]:
    """New tokens [B, Hkv, L, D] from `position` as pieces, pinned ones apart."""
    sinks = min(max(0, pinned - position), keys.shape[2])
    pieces = [
        Piece(keys=keys[:, :, :sinks], values=values[:, :, :sinks], position=position, pinned=True),
        Piece(keys=keys[:, :, sinks:], values=values[:, :, sinks:], position=position + sinks),
    ]
    return [piece for piece in pieces if piece.keys.shape[2]]
