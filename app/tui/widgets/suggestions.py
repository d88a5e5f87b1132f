"""The completions above the prompt; the cursor stays in the prompt."""

from collections.abc import Sequence

from textual.content import Content
from textual.widget import Widget

from app.chat.completion import Suggestion
from app.inert import inert_line
from app.tui.text.colours import MUTED

MOST_LINES = 7


class Suggestions(Widget):
    """A list of completions with one of them chosen. most: lines that it may take."""

    def __init__(self) -> None:
        super().__init__()
        self.most = MOST_LINES
        self._all: list[Suggestion] = []
        self._at = 0
        self.moved = False
        self.display = False

    @property
    def chosen(self) -> Suggestion | None:
        """The one that Tab takes."""
        return self._all[self._at] if self._all else None

    def show(self, found: Sequence[Suggestion]) -> None:
        """Show other completions; none hides the list."""
        if list(found) == self._all:
            return
        self._all, self._at, self.moved = list(found), 0, False
        self.display = bool(found)
        self.styles.height = min(len(self._all), self.most)
        self.refresh(layout=True)

    def move(self, step: int) -> None:
        """Choose another one."""
        if self._all:
            self._at = (self._at + step) % len(self._all)
            self.moved = True
            self.refresh()

    def render(self) -> Content:
        first = max(min(self._at - self.most // 2, len(self._all) - self.most), 0)
        shown = self._all[first : first + self.most]
        width = max((len(inert_line(each.label)) for each in shown), default=0) + 2
        lines = []
        for at, each in enumerate(shown, start=first):
            chosen = at == self._at
            lines.append(
                Content.assemble(
                    ("▸ " if chosen else "  ", "$accent"),
                    (inert_line(each.label).ljust(width), "bold" if chosen else ""),
                    (each.about, MUTED),
                ).truncate(max(self.size.width, 1), ellipsis=True)
            )
        return Content("\n").join(lines)
