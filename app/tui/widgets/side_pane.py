"""The live figures beside the conversation."""

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import VerticalScroll

from app import units
from app.chat.controller import ChatController
from app.chat.tier_counts import TierLog
from app.events import Drafts
from app.tui.widgets.cache_pane import CachePane
from app.tui.widgets.layer_map import LayerMap
from app.tui.widgets.speed_pane import SpeedPane
from app.tui.widgets.tier_events import TierEvents
from kvcache.stats import CacheStats


class SidePane(VerticalScroll, can_focus=False):
    """Speed, cache, layers and tier events, one above the other."""

    def __init__(self) -> None:
        super().__init__()
        self._speed, self._cache = SpeedPane(), CachePane()
        self._layers, self._events = LayerMap(), TierEvents()

    def compose(self) -> ComposeResult:
        yield self._speed
        yield self._cache
        yield self._layers
        yield self._events

    def show(
        self,
        chat: ChatController,
        layers: Sequence[CacheStats],
        log: TierLog,
    ) -> None:
        """Update every pane that is to be seen."""
        if not self.display:
            return
        speed, run = chat.meter.speed(), chat.run
        drafts = run.drafts if run else chat.last.drafts if chat.last else Drafts()
        self._speed.show(chat.model, speed, run.prefill if run else None, chat.last, drafts)
        self._cache.show(chat.model, layers, prompt_notes(chat))
        self._layers.show(chat.model, layers)
        self._events.show(log.events)


def prompt_notes(chat: ChatController) -> str:
    """What of the chat the model does not read, and what of the last prompt it had read before."""
    lines, left_out, last = [], chat.chat.left_out, chat.last
    if left_out:
        lines.append(f"× left out {left_out} message{'s' * (left_out > 1)}")
    if last is not None:
        reused, tokens = units.count(last.reused_tokens), units.count(last.prompt_tokens)
        lines.append(f"reused {reused} of {tokens} tok")
    return "\n".join(lines)
