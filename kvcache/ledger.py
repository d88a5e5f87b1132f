"""Which tier each token is in: plain integers, no arrays.

Tokens have positions 0, 1, 2, ... in the order of their appending. The first
`pinned` are sinks; all others form blocks whose edges lie at pinned + n * block:

    0 ... pinned | evicted blocks | cold blocks, oldest first | hot tokens | total
                                  first ............... end

This module does not know what a token holds or what a block is encoded with.
"""

from dataclasses import dataclass, replace

from kvcache.errors import CacheError


@dataclass(frozen=True, kw_only=True)
class TierSizes:
    """How many tokens each tier holds at most.

    pinned: first tokens that are neither encoded nor let go (sinks, kept prefix).
    hot: newest tokens that are never encoded.
    block: tokens that migrate together from hot to cold.
    slots: blocks that the cold ring holds; 0 lets tokens go without encoding them.
    """

    pinned: int
    hot: int
    block: int
    slots: int

    def __post_init__(self) -> None:
        for name, least in (("pinned", 0), ("hot", 0), ("block", 1), ("slots", 0)):
            if getattr(self, name) < least:
                raise CacheError(f"got {name}={getattr(self, name)}, expected at least {least}")

    @classmethod
    def within(cls, max_tokens: int, *, pinned: int, hot: int, block: int) -> "TierSizes":
        """As many slots as a window of `max_tokens` leaves; hot shrinks where it does not fit.

        Raises CacheError when not even the pinned tokens and one block fit.
        """
        if max_tokens < pinned + block:
            raise CacheError(
                f"a window of {max_tokens} tokens does not hold {pinned} pinned tokens and a "
                f"block of {block}; give a larger --ctx, or smaller --sinks or --block"
            )
        hot = min(hot, max_tokens - pinned - block + 1)
        slots = (max_tokens - pinned - hot - block + 1) // block
        return cls(pinned=pinned, hot=hot, block=block, slots=slots)

    @property
    def ring(self) -> int:
        """Tokens that the hot ring holds: one more would complete a block that is not hot."""
        return self.hot + self.block - 1

    @property
    def max_tokens(self) -> int:
        """Tokens held at most."""
        return self.pinned + self.slots * self.block + self.ring

    def blocks_after(self, total: int) -> int:
        """Blocks that have left the hot ring once `total` tokens were appended."""
        return max(0, (total - self.pinned - self.hot) // self.block)


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """Where the tokens of a cache are. A value: every change makes a new one.

    total: tokens appended and not rewound.
    first, end: the blocks [first, end) are cold; those before are evicted.
    """

    sizes: TierSizes
    total: int = 0
    first: int = 0
    end: int = 0

    # -- positions --

    @property
    def cold_start(self) -> int:
        """Position of the oldest cold token, or where it would be."""
        return self.sizes.pinned + self.first * self.sizes.block

    @property
    def hot_start(self) -> int:
        """Position of the oldest hot token, or where it would be."""
        return self.sizes.pinned + self.end * self.sizes.block

    @property
    def hot_number(self) -> int:
        """Number of the oldest hot token, counted from the first unpinned one."""
        return self.end * self.sizes.block

    # -- tokens by tier --

    @property
    def sink(self) -> int:
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
        return self.first * self.sizes.block

    @property
    def held(self) -> int:
        """Tokens of all tiers."""
        return self.sink + self.cold + self.hot

    # -- changes --

    def appended(self, tokens: int) -> "Ledger":
        """After `tokens` more."""
        total = self.total + tokens
        end = max(self.end, self.sizes.blocks_after(total))
        first = max(self.first, end - self.sizes.slots)
        return replace(self, total=total, first=first, end=end)

    def rewound(self, tokens: int) -> "Ledger":
        """After going back at least `tokens`.

        Inside the hot tier exactly that far; else to the edge of the cold block
        before, or, when that one is evicted, to the beginning.
        """
        total = max(0, self.total - max(0, tokens))
        if total >= self.hot_start or not self.end:
            return replace(self, total=total)
        end = (total - self.sizes.pinned) // self.sizes.block
        if end <= self.first:
            # What precedes is not held, but for the sinks while none is evicted.
            kept = 0 if self.first else min(total, self.sizes.pinned)
            return Ledger(sizes=self.sizes, total=kept)
        return replace(self, total=self.sizes.pinned + end * self.sizes.block, end=end)

    def resized(self, sizes: TierSizes) -> "Ledger":
        """The same tokens under other sizes; what they do not hold is let go."""
        gone = -(-self.evicted // sizes.block)
        end = max(gone, sizes.blocks_after(self.total))
        first = max(gone, end - sizes.slots)
        return Ledger(sizes=sizes, total=self.total, first=first, end=end)

    # -- what a query sees --

    def evicted_before(self, position: int) -> int:
        """Tokens let go once `position` tokens are appended, as a query there finds them."""
        end = max(self.end, self.sizes.blocks_after(position))
        return max(self.first, end - self.sizes.slots) * self.sizes.block

    def lowest(self, position: int) -> int:
        """The oldest unpinned position that a query at `position` may see."""
        return self.sizes.pinned + self.evicted_before(position)
