"""The last moves between tiers."""

import time
from collections.abc import Sequence

from textual.content import Content

from app.chat.tier_counts import Tier, TierEvent
from app.tui.text.colours import MUTED
from app.tui.widgets.pane import Pane

_SHOWN = 6


class TierEvents(Pane):
    """When how many tokens went cold, were evicted or were forgotten."""

    def __init__(self) -> None:
        super().__init__("Tier events")

    def show(self, events: Sequence[TierEvent]) -> None:
        """Update; the newest event is last."""
        if not events:
            self.draw(Content.styled("none yet", MUTED))
            return
        self.draw(Content("\n").join([Content(_line(event)) for event in list(events)[-_SHOWN:]]))


def _line(event: TierEvent) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(event.at))
    match event.tier:
        case Tier.COLD:
            share = "" if event.ratio is None else f" {event.ratio:.0%}"
            return f"{clock} {event.tokens} tok → cold{share}"
        case Tier.EVICTED:
            return f"{clock} {event.tokens} tok evicted"
        case _:
            return f"{clock} {event.tokens} tok taken back"
