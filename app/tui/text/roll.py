"""All messages as one roll of lines, of which only a part is in view.

Lines are made where they are seen first. After a change of width or colours the
rest keeps its old lines, or an estimate of their number, until `freshen` comes to
it; so a change costs the same in a chat of any length. Knows no widget.
"""

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence

from app.sessions.chat import ChatMessage
from app.tui.text.entry import Entry
from app.tui.text.lines import LineMaker


class Roll:
    """The entries of a conversation, and the line that each begins at.

    opens_thoughts: whether what was thought before answers stands open; where that changes,
    all of it opens or folds.
    """

    def __init__(self, opens_thoughts: Callable[[], bool] = lambda: False) -> None:
        self._opens_thoughts = opens_thoughts
        self._opened = opens_thoughts()
        self.entries: list[Entry] = []
        self._tops: list[int] = [0]

    @property
    def height(self) -> int:
        """Lines in all."""
        return self._tops[-1]

    @property
    def messages(self) -> list[ChatMessage]:
        """The messages of the entries."""
        return [entry.message for entry in self.entries]

    def show(self, messages: Sequence[ChatMessage], maker: LineMaker) -> int | None:
        """Take these messages; returns the first line that changed, None where none did.

        New messages before the last two are left to `freshen`.
        """
        if (opened := self._opens_thoughts()) is not self._opened:
            self._opened = opened
            for entry in self.entries:
                entry.show_thought(is_open=opened)
        same = self._count_same(messages)
        changed = same if same < max(len(self.entries), len(messages)) else None
        if changed is not None:
            self.entries[same:] = [
                Entry(each, opens_thought=self._opened) for each in messages[same:]
            ]
            for entry in self.entries[same:]:
                entry.estimate(maker)
        for index, entry in enumerate(self.entries):
            wanted = entry.is_made_by(maker) or index >= len(self.entries) - 2
            if wanted and entry.sync(maker):
                changed = index if changed is None else min(changed, index)
        return None if changed is None else self._place(changed)

    def freshen(self, maker: LineMaker, near: int, seconds: float) -> int | None:
        """Make the lines that are not up to date, those near the line `near` first.

        Stops after about `seconds`; returns the first line that changed, or None.
        """
        stale = [at for at, entry in enumerate(self.entries) if not entry.is_made_by(maker)]
        if not stale:
            return None
        centre = self.index_at(near)
        stale.sort(key=lambda at: abs(at - centre))
        until = time.monotonic() + seconds
        first = len(self.entries)
        for at in stale:
            self.entries[at].sync(maker)
            first = min(first, at)
            if time.monotonic() > until:
                break
        return self._place(first)

    def toggle_thought(self, maker: LineMaker, index: int) -> int:
        """Open or fold what was thought before an answer; returns the first line that changed."""
        self.entries[index].toggle_thought()
        self.entries[index].sync(maker)
        return self._place(index)

    def toggle_figures(self, maker: LineMaker, index: int) -> int:
        """Say more of what an answer cost, or less; returns the first line that changed."""
        self.entries[index].toggle_figures()
        self.entries[index].sync(maker)
        return self._place(index)

    def last_thought(self) -> int | None:
        """The last entry that shows what was thought; None where none does."""
        entries = reversed(list(enumerate(self.entries)))
        return next((at for at, entry in entries if entry.message.thought), None)

    def index_at(self, line: int) -> int:
        """The entry that a line belongs to; the nearest one for a line beyond the roll."""
        return min(max(bisect_right(self._tops, line) - 1, 0), max(len(self.entries) - 1, 0))

    def span(self, index: int) -> tuple[int, int]:
        """The lines of an entry: its first, and the one after its last."""
        return self._tops[index], self._tops[index + 1]

    def tokens_before(self, index: int) -> int:
        """Tokens of the conversation up to where an entry begins."""
        before = (self.entries[at].message.end for at in range(index - 1, -1, -1))
        return next((end for end in before if end is not None), 0)

    def text_lines(self) -> list[str]:
        """What all lines say."""
        return [line.text.rstrip() for entry in self.entries for line in entry.lines]

    def _count_same(self, messages: Sequence[ChatMessage]) -> int:
        same = 0
        for entry, message in zip(self.entries, messages, strict=False):
            if entry.message is not message:
                break
            same += 1
        return same

    def _place(self, first: int) -> int:
        """Find where entries begin, from the changed one on; returns its first changed line."""
        del self._tops[first + 1 :]
        for entry in self.entries[first:]:
            self._tops.append(self._tops[-1] + len(entry.lines))
        same = self.entries[first].same if first < len(self.entries) else 0
        return self._tops[first] + same
