"""Which tier each token is in: plain integers, no arrays.

Tokens have positions 0, 1, 2, ... in the order of their appending. The first
`pinned` are sinks; all others form blocks whose edges lie at start + n * block:

    0 ... pinned | evicted | evicted blocks | cold blocks, oldest first | hot tokens | total
                 | origin  | 0 ......... first ............... end

`origin` is 0, but for a ledger that began anew after tokens were let go: under
other sizes (`resized`) or from a later token (`restarted`). All that it holds
then lies in blocks of the sizes that it has.

This module does not know what a token holds or what a block is encoded with.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from kvcache.errors import CacheError
from kvcache.reference import Mask
from kvcache.sight import Sight
from kvcache.snapshot import Bounds
from kvcache.turn import Rotation


@dataclass(frozen=True, kw_only=True)
class TierSizes:
    """How many tokens each tier holds at most.

    pinned: first tokens that are neither encoded nor let go (sinks, kept prefix).
    hot: newest tokens that are never encoded.
    block: tokens that migrate together from hot to cold.
    slots: blocks that the cold ring holds; 0 lets tokens go without encoding them.
    window: of a layer whose queries see no more tokens, their own the last; None: all
    that is held. Nothing is pinned then, and all that a window shows is always held.
    slack: newest tokens that can always be dropped as if they had not come. There is memory
    for what such tokens have encoded and let go, beside all others.
    """

    pinned: int
    hot: int
    block: int
    slots: int
    window: int | None = None
    slack: int = 0

    def __post_init__(self) -> None:
        for name, least in (("pinned", 0), ("hot", 0), ("block", 1), ("slots", 0), ("slack", 0)):
            if getattr(self, name) < least:
                raise CacheError(f"got {name}={getattr(self, name)}, expected at least {least}")
        if self.window is not None:
            held = self.hot + self.slots * self.block
            if self.pinned or not 1 <= self.window <= held:
                raise CacheError(
                    f"got a window of {self.window} tokens and {self.pinned} pinned ones, expected "
                    f"1 to {held}, which these tiers always hold, and none"
                )

    @classmethod
    def within(
        cls, max_tokens: int, *, pinned: int, hot: int, block: int, slack: int = 0
    ) -> "TierSizes":
        """As many slots as a window of `max_tokens` leaves; hot shrinks where it does not fit.

        Raises CacheError when not even the pinned tokens and one block fit.
        """
        if max_tokens < pinned + block:
            raise CacheError(
                f"a window of {max_tokens} tokens does not hold {pinned} pinned tokens and a "
                f"block of {block}; give a larger `max_tokens`, or smaller `sinks`, `keep` or "
                "`block`"
            )
        hot = min(hot, max_tokens - pinned - block + 1)
        slots = (max_tokens - pinned - hot - block + 1) // block
        return cls(pinned=pinned, hot=hot, block=block, slots=slots, slack=slack)

    @classmethod
    def of_window(cls, window: int, *, hot: int, block: int, slack: int = 0) -> "TierSizes":
        """What always holds a window of which `hot` tokens at most stay unencoded."""
        hot = min(hot, window)
        slots = -(-(window - hot) // block)
        return cls(pinned=0, hot=hot, block=block, slots=slots, window=window, slack=slack)

    @property
    def ring(self) -> int:
        """Tokens that the hot ring holds: one more would complete a block that is not hot."""
        return self.hot + self.block - 1

    @property
    def max_tokens(self) -> int:
        """Tokens held at most."""
        return self.pinned + self.slots * self.block + self.ring

    @property
    def hot_memory(self) -> int:
        """Tokens that the hot ring has memory for: token number u lies at u mod this."""
        return self.ring + self.slack

    @property
    def cold_memory(self) -> int:
        """Blocks that the cold ring has memory for: block number b lies in slot b mod this."""
        return self.slots and self.slots - (-self.slack // self.block)


class Floor(NamedTuple):
    """The fewest tokens that a ledger can be trimmed to, and its cold blocks then."""

    total: int
    first: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Where the tokens of a cache are. A value: every change makes a new one.

    total: tokens appended and not rewound.
    first, end: the blocks [first, end) are cold; those before are evicted.
    origin: unpinned tokens before block 0, all of them evicted.
    lower: the floor, where the memory still has what was encoded or let go above it.
    """

    sizes: TierSizes
    total: int = 0
    first: int = 0
    end: int = 0
    origin: int = 0
    lower: Floor | None = None

    # -- positions --

    @cached_property
    def start(self) -> int:
        """Position of the token of number 0: the first of block 0."""
        return self.sizes.pinned + self.origin

    @property
    def hot_start(self) -> int:
        """Position of the oldest hot token, or where it would be."""
        return self.start + self.end * self.sizes.block

    @cached_property
    def hot_number(self) -> int:
        """Number of the oldest hot token."""
        return self.end * self.sizes.block

    # -- tokens by tier --

    @cached_property
    def pinned(self) -> int:
        """Pinned tokens held."""
        return min(self.total, self.sizes.pinned)

    @property
    def hot(self) -> int:
        """Hot tokens held."""
        return max(0, self.total - self.hot_start)

    @property
    def cold(self) -> int:
        """Cold tokens held."""
        return (self.end - self.first) * self.sizes.block

    @property
    def evicted(self) -> int:
        """Tokens let go."""
        return self.origin + self.first * self.sizes.block

    @property
    def is_whole(self) -> bool:
        """Whether all tokens are as they came: none was encoded or let go."""
        return not (self.end or self.origin)

    @cached_property
    def floor(self) -> Floor:
        """How far it can be trimmed: without `lower`, to where the last block left."""
        if self.lower is not None:
            return self.lower
        left = self._least(self.end)
        # After going back by blocks there may be fewer tokens.
        return Floor(left if left <= self.total else self.hot_start, self.first, self.end)

    @property
    def oldest(self) -> int:
        """The first block that the memory keeps: trimming may bring back what was let go."""
        return self.floor.first if self.sizes.slots else self.end

    @property
    def droppable(self) -> int:
        """Newest tokens of which any number can be dropped as if they had not come."""
        return self.total - self.floor.total

    @property
    def room(self) -> int:
        """Tokens that can come before a block leaves the hot ring.

        So many can be appended and taken back, and all is as if they had not come.
        """
        sizes = self.sizes
        full = self.start + self.end * sizes.block + sizes.ring
        return max(0, full - self.total)

    @property
    def held(self) -> int:
        """Tokens of all tiers."""
        return self.pinned + self.cold + self.hot

    @cached_property
    def bounds(self) -> Bounds:
        """Where the tokens lie in rings of these sizes."""
        sizes = self.sizes
        return Bounds(
            evicted=self.evicted,
            pinned=self.pinned,
            first_slot=self.first % max(sizes.cold_memory, 1),
            blocks=self.end - self.first,
            block=sizes.block,
            hot=self.hot,
            hot_start=self.hot_number % max(sizes.hot_memory, 1),
        )

    def check(self) -> None:
        """Raise CacheError for numbers that no appending and rewinding leads to."""
        ordered = 0 <= self.first <= self.end <= self.first + self.sizes.slots
        counted = min(self.total, self.origin) >= 0
        held = 0 <= self.total - self.hot_start <= self.sizes.ring
        begun = self.is_whole and self.total < self.hot_start
        if not (ordered and counted and (held or begun)):
            raise CacheError(
                f"got {self.total} tokens with cold blocks {self.first} to {self.end}, numbered "
                f"from token {self.origin}: tiers of {self.sizes} do not hold them so"
            )

    # -- changes --

    def appended(self, tokens: int) -> "Ledger":
        """After `tokens` more."""
        total = self.total + tokens
        end = self._end_after(total)
        first = max(self.first, end - self.sizes.slots)
        after = replace(self, total=total, first=first, end=end, lower=None)
        return after._down_to(self._floor_of(total)) if self.sizes.slack else after

    def trimmed(self, tokens: int) -> "Ledger":
        """As if the last `tokens` had not come. Raises CacheError for more than `droppable`."""
        total, floor = self.total - tokens, self.floor
        if not floor.total <= total <= self.total:
            raise CacheError(
                f"got {tokens} tokens to trim, expected at most {self.droppable}: older ones were "
                "encoded or let go since; feed the prompt to a new cache, or make this one with a "
                "larger slack"
            )
        _, first, end = self._cold_at(total)
        after = replace(self, total=total, first=first, end=end, lower=None)
        return after._down_to(floor) if self.sizes.slack else after

    def stages(self, tokens: int) -> "tuple[tuple[Ledger, int], ...]":
        """That many more in runs that meet the same blocks, and the ledger that each meets."""
        found: list[tuple[Ledger, int]] = []
        ledger, left = self, tokens
        while left:
            # The one that makes a block leave meets it still.
            count = min(left, ledger.room + 1)
            found.append((ledger, count))
            ledger, left = ledger.appended(count), left - count
        return tuple(found)

    def rewound(self, tokens: int) -> "Ledger":
        """After going back at least `tokens`.

        Inside the hot tier exactly that far; else to the edge of the cold block
        before, or, when that one is evicted, to the pinned tokens. A layer with a window
        goes exactly that far, or to the beginning where the next query would miss tokens.
        """
        total = max(0, self.total - max(0, tokens))
        if self.sizes.window is not None:
            return self._rewound_window(total) if tokens > 0 else self
        if total >= self.hot_start or self.is_whole:
            return replace(self, total=total, lower=None)
        end = (total - self.start) // self.sizes.block
        if end <= self.first:
            # What precedes is not held, but for the pinned tokens, which always are.
            return Ledger(sizes=self.sizes, total=min(total, self.sizes.pinned))
        return replace(self, total=self.start + end * self.sizes.block, end=end, lower=None)

    def resized(self, sizes: TierSizes) -> "Ledger":
        """The same tokens under other sizes; what they do not hold is let go.

        Blocks begin anew at the oldest unpinned token held, so that no token is
        lost to an edge. Raises CacheError for other pinned tokens, once any token
        was let go after them.
        """
        if self.evicted and sizes.pinned != self.sizes.pinned:
            raise CacheError(
                f"got {sizes.pinned} pinned tokens, but the cache was made with "
                f"{self.sizes.pinned} and let tokens after them go; make a new cache for "
                "another number"
            )
        return replace(Ledger(sizes=sizes, origin=self.evicted).appended(self.total), lower=None)

    def must_restart(self, total: int) -> bool:
        """Whether `restarted` is the way to `total` tokens, not more tokens behind these.

        It is where more were let go than by a cache that is fed all of them anew,
        or all but the pinned ones, of a sequence that does not fit.
        """
        anew = Ledger(sizes=self.sizes).appended(total)
        lost = self.held == self.pinned and anew.evicted > self.evicted
        return lost or self.appended(total - self.total).evicted > anew.evicted

    def restarted(self, total: int) -> "Ledger":
        """The pinned tokens alone, before the ones that a cache fed anew holds at `total`.

        The next position is that of the oldest unpinned one of those, or of what the last of
        `total` sees, where its coming lets all go: what comes before counts as let go.
        """
        kept, pinned = min(self.total, self.sizes.pinned), self.sizes.pinned
        anew = Ledger(sizes=self.sizes).appended(total)
        if anew.held == pinned:
            anew = Ledger(sizes=self.sizes).appended(total - 1)
        return self.emptied(kept + anew.evicted if kept == pinned else kept)

    def emptied(self, total: int) -> "Ledger":
        """Of `total` tokens the pinned ones alone: all others count as let go."""
        origin = max(0, total - self.sizes.pinned)
        return Ledger(sizes=self.sizes, total=total, origin=origin)

    # -- what a query sees --

    def evicted_before(self, position: int) -> int:
        """Tokens let go once `position` tokens are appended, as a query there finds them."""
        first = max(self.first, self._end_after(position) - self.sizes.slots)
        return self.origin + first * self.sizes.block

    def sight(
        self,
        position: int,
        queries: int,
        *,
        new: int = 0,
        mask: Mask = "causal",
        rotation: Rotation | None = None,
    ) -> Sight:
        """What queries from `position` on see of these tokens and of `new` ones behind them."""
        rows = range(position, position + queries)
        return Sight(
            position=position,
            gone=tuple(map(self.evicted_before, rows)),
            total=self.total,
            pinned=self.sizes.pinned,
            evicted=self.evicted,
            window=self.sizes.window,
            new=new,
            mask=mask,
            rotation=rotation,
        )

    # -- inside --

    def _rewound_window(self, total: int) -> "Ledger":
        if self.evicted > max(0, total + 1 - (self.sizes.window or 0)):
            return Ledger(sizes=self.sizes)
        # What is left of a block that was cold is hot again.
        end = max(0, total - self.start) // self.sizes.block
        return replace(self, total=total, end=min(self.end, end), lower=None)

    def _end_after(self, total: int) -> int:
        """Blocks that have left the hot ring once `total` tokens were appended."""
        return max(self.end, (total - self.start - self.sizes.hot) // self.sizes.block)

    def _cold_at(self, total: int) -> Floor:
        """The cold blocks as they were at `total` tokens, not below the floor."""
        floor, sizes = self.floor, self.sizes
        end = max(floor.end, (total - self.start - sizes.hot) // sizes.block)
        return Floor(total, max(floor.first, end - sizes.slots), end)

    def _least(self, end: int) -> int:
        """The fewest tokens with that many blocks gone from the hot ring, fed one by one."""
        if not end:
            return self.start if self.origin else 0
        return self.start + end * self.sizes.block + self.sizes.hot

    def _floor_of(self, total: int) -> Floor:
        """The floor once `total` tokens were appended: what memory for slack still has."""
        floor = self.floor
        _, first, end = self._cold_at(max(floor.total, total - self.sizes.slack))
        # Further back the blocks are the same, to where the last of them left the hot ring.
        return floor if end == floor.end else Floor(self._least(end), first, end)

    def _down_to(self, floor: Floor) -> "Ledger":
        return self if floor == self.floor else replace(self, lower=floor)
