"""What is said for some seconds over the chat, and leaves the prompt to be seen."""

from collections.abc import Iterable
from itertools import accumulate
from textwrap import wrap
from time import time

from rich.cells import cell_len
from textual.geometry import Size
from textual.notifications import Notification

_LEAST_SECONDS = 0.1
_LEAST_CHARACTERS, _MOST_CHARACTERS = 80, 480
# Of the screen's lines, all together.
_SHARE = 0.45
_WIDEST, _PART, _BESIDE = 60, 0.8, 3
# Words leave the rest of each line empty.
_FULL = 0.85


class Notice(Notification):
    """Shown for a moment at least.

    Textual 8.2 asks how long it is to be shown once more as it draws it, and a timer of less than
    no time keeps the whole program for ever.
    """

    @property
    def time_left(self) -> float:
        """Seconds, never none."""
        return max(super().time_left, _LEAST_SECONDS)

    @property
    def has_expired(self) -> bool:
        """Whether it need not be drawn any more."""
        return self.raised_at + self.timeout <= time()


def crowded_out(
    shown: Iterable[Notification], new: Notification, screen: Size
) -> list[Notification]:
    """Those of the shown ones that the new one leaves no room for."""
    newest_first = [new, *reversed(list(shown))]
    ends = accumulate(1 + _lines_of(each.message, _width(screen)) for each in newest_first)
    fits = sum(1 for end in ends if end <= _lines(screen))
    return newest_first[max(fits, 1) :]


def most_characters(screen: Size) -> int:
    """How long a notice may be."""
    fits = int((_lines(screen) - 1) * _width(screen) * _FULL)
    return min(max(fits, _LEAST_CHARACTERS), _MOST_CHARACTERS)


def _lines(screen: Size) -> int:
    """For all of them, and the one above each."""
    return int(screen.height * _SHARE)


def _lines_of(text: str, width: int) -> int:
    """Wide characters are counted as if they filled their lines."""
    wrapped = sum(max(len(wrap(line, width)), 1) for line in text.split("\n"))
    return max(wrapped, -(-cell_len(text) // width))


def _width(screen: Size) -> int:
    """Of a notice's text."""
    return max(int(min(_WIDEST, screen.width * _PART)) - _BESIDE, 1)
