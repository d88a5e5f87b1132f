"""What the cache holds, by tier, against its budget."""

from collections.abc import Sequence

from textual.content import Content

from app import units
from app.chat.tier_counts import Tier, share_of_f16
from app.service.contract import ModelInfo
from app.tui.text.colours import MUTED
from app.tui.widgets.pane import Pane
from kvcache.stats import CacheStats, sum_layers

_TIERS = (("◆", "sink", "$success"), ("█", "hot", "$accent"), ("▒", "cold", "$primary"))


class CachePane(Pane):
    """Bytes, tokens and bits of each tier; ratio, and how many tokens until it is full."""

    def __init__(self) -> None:
        super().__init__("KV cache")

    def show(self, model: ModelInfo | None, layers: Sequence[CacheStats], reused: str) -> None:
        """Update from the figures of all layers: bytes of all, tokens of one that holds most."""
        if model is None or not layers:
            self.draw(Content.styled("no model", MUTED))
            return
        stats = sum_layers(layers)
        title = f"KV cache · {model.kv}"
        if self.border_title != title:
            self.border_title = title
        width = max(self.content_size.width, 20)
        share = stats.held_bytes / model.max_bytes if model.max_bytes else 0.0
        held = f"{units.size(stats.held_bytes)} of {units.size(model.max_bytes)}"
        lines = [
            Content(held + f"{share:.0%}".rjust(max(width - len(held), 5))),
            tier_bar(stats, model.max_bytes, width),
            *_tier_lines(stats, layers),
            _evicted_line(stats),
            Content(f"ratio {stats.ratio:.2f}x  {_room(model, stats)}"),
        ]
        if reused:
            lines.append(Content.styled(reused, MUTED))
        self.draw(Content("\n").join(lines))


def tier_bar(stats: CacheStats, budget: int, width: int) -> Content:
    """The budget as a bar: sink, hot and cold bytes, then what is free."""
    parts: list[tuple[str, str]] = []
    used = 0
    edge = 0
    for (glyph, _, style), size in zip(
        _TIERS, (stats.sink_bytes, stats.hot_bytes, stats.cold_bytes), strict=True
    ):
        edge += size
        reached = round(edge / budget * width) if budget else 0
        cells = max(min(reached, width) - used, 1 if size and used < width else 0)
        used += cells
        parts.append((glyph * cells, style))
    parts.append(("░" * (width - used), MUTED))
    return Content.assemble(*parts)


def _tier_lines(stats: CacheStats, layers: Sequence[CacheStats]) -> list[Content]:
    lines = []
    for (glyph, name, style), tokens, size in zip(
        _TIERS,
        (stats.sink, stats.hot, stats.cold),
        (stats.sink_bytes, stats.hot_bytes, stats.cold_bytes),
        strict=True,
    ):
        share = share_of_f16(layers, Tier(name))
        shown = "" if share is None else f"{16 * share:.3g}b"
        lines.append(
            Content.assemble(
                (glyph, style), f" {name:<5}{tokens:>6} tok{units.size(size):>9} {shown:>5}"
            )
        )
    return lines


def _evicted_line(stats: CacheStats) -> Content:
    line = f"× evicted {stats.evicted:>3} tok"
    return Content.styled(line, "$warning" if stats.evicted else MUTED)


def _room(model: ModelInfo, stats: CacheStats) -> str:
    """Tokens until the oldest go; they go a block at a time, so there is room again after."""
    left = max(model.holds - stats.held, 0)
    event = "next go" if stats.evicted else "full"
    return f"{event} in {units.count(left)} tok" if left else "the oldest go next"
