"""What is said for some seconds over the chat, and leaves the prompt to be seen."""

from collections.abc import Iterable
from itertools import accumulate
from time import time
from typing import Any

from textual.app import App
from textual.content import Content
from textual.geometry import Size
from textual.notifications import Notification
from textual.widgets._toast import Toast, ToastHolder

from kvcache.errors import short

_LEAST_SECONDS = 0.1
_LEAST_CHARACTERS, _MOST_CHARACTERS = 80, 480
# Of the screen's lines, all together.
_SHARE = 0.45
_WIDEST, _PART, _BESIDE, _SCROLL_BAR = 60, 0.8, 3, 2
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


def fitted(text: str, screen: Size) -> str:
    """A text as it may be said: on a part of the screen, of its lines the first ones."""
    lines = _lines(screen) - 1
    fits = int(lines * _width(screen) * _FULL)
    shown = short(text, min(max(fits, _LEAST_CHARACTERS), _MOST_CHARACTERS)).split("\n")
    return "\n".join(shown if len(shown) <= max(lines, 1) else [*shown[: max(lines - 1, 1)], "…"])


def has_room(app: App[Any], text: str) -> bool:
    """Whether it can be said beside what is shown."""
    return not _crowded_out(app._notifications, Notice(text), app.size)


def make_room(app: App[Any], new: Notification | None = None) -> None:
    """Let older notices go where there is no room for all, and what held those that have gone.

    Textual 8.2 leaves that, and would show others further below.
    """
    for each in _crowded_out(app._notifications, new, app.size):
        app._unnotify(each, refresh=False)
    for screen in app.screen_stack:
        for holder in screen.query(ToastHolder):
            toasts = [each for each in holder.children if isinstance(each, Toast)]
            if all(each._notification not in app._notifications for each in toasts):
                holder.remove()


def _crowded_out(
    shown: Iterable[Notification], new: Notification | None, screen: Size
) -> list[Notification]:
    newest_first = [*([new] if new else []), *reversed(list(shown))]
    ends = accumulate(1 + _lines_of(each.message, _width(screen)) for each in newest_first)
    fits = sum(1 for end in ends if end <= _lines(screen))
    return newest_first[max(fits, 1) :]


def _lines(screen: Size) -> int:
    """For all of them, and the one above each."""
    return int(screen.height * _SHARE)


def _lines_of(text: str, width: int) -> int:
    return sum(max(len(Content(line).wrap(width)), 1) for line in text.split("\n"))


def _width(screen: Size) -> int:
    """Of a notice's text."""
    return max(int(min(_WIDEST, (screen.width - _SCROLL_BAR) * _PART)) - _BESIDE, 1)
