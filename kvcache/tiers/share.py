"""Bytes that several chats share, and how many cold blocks one of them may have of these.

Plain numbers: knows no cache and no tokens.
"""

import weakref
from dataclasses import dataclass, field
from threading import RLock


@dataclass(eq=False)
class Purse:
    """Bytes, some of which are taken. Any thread may take and give."""

    budget: int
    taken: int = 0
    chats: int = 0
    # A chat may end by the garbage that this thread collects meanwhile.
    _lock: RLock = field(default_factory=RLock, repr=False)

    def take(self, units: int, unit: int) -> int:
        """Take as many of `units` units of so many bytes as are free; returns how many."""
        with self._lock:
            granted = min(units, (self.budget - self.taken) // unit) if unit else units
            self.taken += granted * unit
        return granted

    def count(self, chats: int, given: int = 0) -> None:
        """So many more chats, or fewer, and bytes that come back."""
        with self._lock:
            self.chats += chats
            self.taken -= given


class Share:
    """One chat's part of a purse: what it has in any case, and blocks as it grows.

    fixed: bytes of all that is not a block of a layer that sees all tokens; they are taken
    already. block: bytes of a block in all such layers. The bytes go back when it is dropped.
    """

    def __init__(self, purse: Purse, *, fixed: int, block: int) -> None:
        self._purse, self._block = purse, block
        self._held = [fixed]
        # Blocks that a layer may hold, and up to which position that is settled.
        self.slots, self.settled = 0, -1
        purse.count(1)
        self._end = weakref.finalize(self, _end, purse, self._held)
        self._end.atexit = False

    def settle(self, position: int, needed: int, most: int) -> None:
        """Have blocks for a layer that needs so many once it has `position` tokens, if there are.

        All layers hold alike at one position, and so the first asks. Once the share has ended
        there are no more.
        """
        self.settled = position
        if needed > self.slots and self._end.alive:
            # More than is needed, so that copies are few for each block; not much, for others.
            wanted = min(needed + needed // 4, most) - self.slots
            granted = self._purse.take(wanted, self._block)
            self._held[0] += granted * self._block
            self.slots += granted

    def end(self) -> None:
        """Give all of it back."""
        self._end()


def _end(purse: Purse, held: list[int]) -> None:
    purse.count(-1, given=held[0])
