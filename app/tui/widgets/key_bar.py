"""The bottom line: keys and what they do, as many as fit; each can be clicked."""

from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.strip import Strip
from textual.widget import Widget

from app.tui.text.colours import without_background

# Key, label and action, the most important first.
HINTS = (
    ("⏎", "Send", "screen.submit"),
    ("esc", "Stop", "screen.stop"),
    ("F1", "Help", "screen.command('help')"),
    ("^R", "Retry", "screen.command('retry')"),
    ("^O", "Chats", "screen.command('sessions')"),
    ("^L", "Model", "screen.command('model')"),
    ("^Q", "Quit", "screen.command('quit')"),
    ("F4", "KV", "screen.command('kv')"),
    ("F3", "Speed", "screen.command('stats')"),
    ("F5", "Panes", "screen.command('panes')"),
    ("F2", "Settings", "screen.command('set')"),
    ("^J", "Newline", "screen.newline"),
    ("^Y", "Copy", "screen.command('copy')"),
    ("^P", "Palette", "screen.palette"),
)


class KeyBar(Widget):
    """As many of HINTS as there is room for."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"key-bar--key", "key-bar--label"}

    async def on_click(self, event: events.Click) -> None:
        """Do what the clicked hint says."""
        if action := event.style.meta.get("key_action"):
            await self.screen.run_action(action)

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        strips = [Strip([Segment(" ")])]
        room = width - 1
        for key, label, action in HINTS:
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
