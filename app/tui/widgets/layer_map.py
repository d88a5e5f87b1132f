"""The tiers of each layer as a bar; layers that are alike may share one."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from textual.content import Content

from app import units
from app.service.contract import ModelInfo
from app.tui.text.colours import MUTED
from app.tui.widgets.cache_pane import tier_bar
from app.tui.widgets.pane import Pane
from kvcache.stats import CacheStats

_LABEL = 6
_SIZE = 9


class LayerMap(Pane):
    """One line for each run of layers that hold the same; or for each layer."""

    def __init__(self, *, joins_alike: bool = True) -> None:
        super().__init__("Layers")
        self._joins_alike = joins_alike

    def show(self, model: ModelInfo | None, layers: Sequence[CacheStats]) -> None:
        """Update from the layers' own figures."""
        if model is None or not layers:
            self.draw(Content.styled("no cache", MUTED))
            return
        budget = model.layer_bytes
        width = max(self.content_size.width - _LABEL - _SIZE, 4)
        lines = []
        for first, last, stats in self._runs(layers):
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

    def _runs(self, layers: Sequence[CacheStats]) -> Iterator[tuple[int, int, CacheStats]]:
        """First and last layer of each line, and what each of them holds."""
        if not self._joins_alike:
            yield from ((number, number, stats) for number, stats in enumerate(layers))
            return
        for stats, run in groupby(enumerate(layers), key=lambda each: each[1]):
            numbers = [number for number, _ in run]
            yield numbers[0], numbers[-1], stats
