"""The top line: model, window, speed and memory; the narrower, the less."""

from rich.text import Text
from textual.content import Content
from textual.widget import Widget

from app import units
from app.inert import inert_line
from app.service.contract import ModelInfo
from app.tui.text.colours import MUTED
from kvcache.stats import CacheStats

_BAR = 16


class HeaderBar(Widget):
    """One line of gauges."""

    def __init__(self) -> None:
        super().__init__()
        self._content = Content("")

    def show(
        self,
        model: ModelInfo | None,
        stats: CacheStats | None,
        speed: float,
        memory: str,
        own: str = "",
    ) -> None:
        """Update all gauges. own: what this chat alone is given, shown where there is room."""
        width = self.size.width
        name = f" ◆ {inert_line(model.name)}" if model else " ◆ ember"
        parts: list[Content] = []
        if model and stats:
            parts.append(_window(model, stats, bar=width >= 100, label=width >= 72))
        if speed:
            parts.append(Content.styled(f"{units.rate(speed)} tok/s", "bold $accent"))
        if width >= 72:
            parts.append(Content(memory))
        right = Content("   ").join(parts)
        room = max(width - right.cell_length - 3, 8)
        if model and width >= 100:
            name += f"  {units.file_size(model.file_bytes)}"
        if own:
            name += f" · {own}"
        shown = Text(name)
        shown.truncate(room, overflow="ellipsis", pad=True)
        content = Content.assemble((shown.plain, "bold"), " ", right, " ")
        if content != self._content or content.spans != self._content.spans:
            self._content = content
            self.refresh()

    def render(self) -> Content:
        return self._content


def _window(model: ModelInfo, stats: CacheStats, *, bar: bool, label: bool) -> Content:
    held = stats.held
    share = held / model.holds
    filled, empty = units.bar(share, _BAR)
    style = "$error" if share > 0.95 else "$warning" if share > 0.8 else "$accent"
    return Content.assemble(
        f"{'window ' if label else ''}{held}/{model.holds} ",
        (filled if bar else "", style),
        (empty if bar else "", MUTED),
        (f" {share:.0%}" if bar or label else "", style),
    )
