"""The bottom line: keys and what they do, as many as fit; each can be clicked."""

from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.strip import Strip
from textual.widget import Widget

from app.tui.text.colours import without_background

Hint = tuple[str, str, str]


class KeyBar(Widget):
    """Hints of (key, label, action), the most important first."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"key-bar--key", "key-bar--label"}

    def __init__(self) -> None:
        super().__init__()
        self._hints: list[Hint] = []

    def show(self, hints: Sequence[Hint]) -> None:
        """Show these hints."""
        if list(hints) != self._hints:
            self._hints = list(hints)
            self.refresh()

    async def on_click(self, event: events.Click) -> None:
        """Do what the clicked hint says."""
        if action := event.style.meta.get("key_action"):
            await self.screen.run_action(action)

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        strips = [Strip([Segment(" ")])]
        room = width - 1
        for key, label, action in self._hints:
            hint = self._hint(key, label, action)
            if hint.cell_length > room:
                break
            room -= hint.cell_length
            strips.append(hint)
        line = Strip.join(strips).crop_extend(0, width, None)
        return line.apply_style(self.rich_style)

    def _hint(self, key: str, label: str, action: str) -> Strip:
        key_style = without_background(self.get_component_rich_style("key-bar--key"))
        label_style = without_background(self.get_component_rich_style("key-bar--label"))
        meta = Style(meta={"key_action": action})
        return Strip(
            [
                Segment(key, key_style + meta),
                Segment(f" {label}", label_style + meta),
                Segment("  "),
            ]
        )
