"""The figures around the conversation: above it, beside it, and in its margin."""

import time

from app import memory
from app.chat.controller import ChatController
from app.chat.tier_counts import TierLog
from app.inert import inert_line
from app.sessions.chat import Chat
from app.tui.widgets.conversation import Conversation
from app.tui.widgets.header_bar import HeaderBar
from app.tui.widgets.side_pane import SidePane
from kvcache.stats import CacheStats, sum_layers


class Gauges:
    """tier_log: what has moved in the cache while the chat is shown."""

    def __init__(self, header: HeaderBar, side: SidePane, conversation: Conversation) -> None:
        self.tier_log = TierLog()
        self._header, self._side, self._conversation = header, side, conversation
        self._shown: Chat | None = None

    def show(self, chat: ChatController) -> None:
        """Bring all of them up to date."""
        layers = chat.layer_stats()
        if chat.chat is not self._shown:
            self._shown, self.tier_log = chat.chat, TierLog()
        total: CacheStats | None = sum_layers(layers) if layers else None
        if total is None:
            self.tier_log.forget()
        else:
            self.tier_log.observe(time.time(), layers)
        used, installed = memory.resident(), memory.installed()
        ram = f"RAM {used / 2**30:.1f}/{installed / 2**30:.0f} GiB"
        self._header.show(chat.model, total, chat.meter.speed().now, ram, _own(chat.chat))
        self._conversation.mark(chat.held.expected(chat.chat, total) if total else None)
        self._side.show(chat, layers, self.tier_log)


def _own(chat: Chat) -> str:
    """What a chat alone is given."""
    system = f"“{inert_line(chat.system)}”" if chat.system else ""
    return " · ".join(filter(None, (chat.sampling_line, system)))
