"""The tiers of each layer as a bar; layers that are alike share one."""

from collections.abc import Sequence
from itertools import groupby

from textual.content import Content

from app.tui.service.contract import ModelInfo
from app.tui.text import units
from app.tui.text.colours import MUTED
from app.tui.widgets.cache_pane import tier_bar
from app.tui.widgets.pane import Pane
from kvcache.stats import CacheStats

_LABEL = 6
_SIZE = 9


class LayerMap(Pane):
    """One line for each run of layers that hold the same."""

    def __init__(self) -> None:
        super().__init__("Layers")

    def show(self, model: ModelInfo | None, layers: Sequence[CacheStats]) -> None:
        """Update from the layers' own figures."""
        if model is None or not layers:
            self.draw(Content.styled("no cache", MUTED))
            return
        budget = model.layer_bytes
        width = max(self.content_size.width - _LABEL - _SIZE, 4)
        lines = []
        for stats, run in groupby(enumerate(layers), key=lambda each: each[1]):
            numbers = [number for number, _ in run]
            first, last = numbers[0], numbers[-1]
            label = f"{first:02}" if first == last else f"{first:02}-{last:02}"
            mark = ("×", "$warning") if stats.evicted else (" ", "")
            lines.append(
                Content.assemble(
                    f"{label:<{_LABEL - 1}}",
                    mark,
                    tier_bar(stats, budget, width),
                    f"{units.size(stats.held_bytes):>{_SIZE}}",
                )
            )
        self.draw(Content("\n").join(lines))
