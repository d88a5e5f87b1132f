"""The screen where one talks with the model.

Takes what the controller has on a timer, and shows it; decides nothing about
the chat itself.
"""

import asyncio
import time
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.screen import Screen
from textual.strip import Strip
from textual.widgets import Static

from app.sessions.chat import Attachment
from app.tui import memory
from app.tui.controller import ChatController, Draft
from app.tui.service import ModelService
from app.tui.text import figures
from app.tui.text.lines import LineMaker
from app.tui.tiers import TierLog
from app.tui.widgets.conversation import Conversation
from app.tui.widgets.header_bar import HeaderBar
from app.tui.widgets.key_bar import Hint, KeyBar
from app.tui.widgets.prompt import Prompt
from app.tui.widgets.side_pane import SidePane
from app.tui.widgets.status_line import StatusLine
from kvcache import EmberError
from kvcache.stats import CacheStats, sum_layers

_TICK = 1 / 20
_FIGURES_TICK = 1 / 4
_SIDE_PANE_FROM = 100
_SHORT = 26
_COUNT_AFTER = 0.25
_HINTS: list[Hint] = [
    ("⏎", "Send", "screen.submit"),
    ("esc", "Stop", "screen.stop"),
    ("^R", "Retry", "screen.retry"),
    ("F5", "Panes", "screen.toggle_panes"),
    ("^J", "Newline", "screen.newline"),
    ("^Q", "Quit", "app.quit"),
]


class ChatScreen(Screen[None]):
    """Conversation, prompt and figures."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop", show=False),
        Binding("ctrl+r", "retry", "Answer again", show=False),
        Binding("f5", "toggle_panes", "Panes", show=False),
        Binding("ctrl+end", "follow", "End", show=False, priority=True),
    ]

    def __init__(self, chat: ChatController, service: ModelService) -> None:
        super().__init__()
        self.chat = chat
        self._service = service
        self._log = TierLog()
        self._attachments: list[Attachment] = []
        self._draft_cost = ""
        self._counting: asyncio.Task[None] | None = None

    def compose(self) -> ComposeResult:
        yield HeaderBar()
        with Horizontal(id="main"):
            yield Conversation(self._placeholder)
            yield SidePane()
        yield StatusLine()
        with Horizontal(id="prompt-row"):
            yield Static("❯", id="prompt-mark")
            yield Prompt()
        yield KeyBar()

    def on_mount(self) -> None:
        """Start the timers."""
        self.query_one(Prompt).focus()
        self.query_one(KeyBar).show(_HINTS)
        self.set_interval(_TICK, self._tick)
        self.set_interval(_FIGURES_TICK, self._show_figures)
        self._show_figures()

    def on_resize(self) -> None:
        """Narrow screens have no side pane, short ones no frame."""
        self.set_class(self.size.width < _SIDE_PANE_FROM, "narrow")
        self.set_class(self.size.height < _SHORT, "short")

    # -- showing --

    def _tick(self) -> None:
        changed = self.chat.tick()
        for notice in self.chat.notices:
            self.notify(notice, markup=False)
        self.chat.notices.clear()
        conversation = self.query_one(Conversation)
        conversation.show(self.chat.chat.messages, at_once=changed and not self.chat.busy)
        self._show_status()

    def _show_status(self) -> None:
        unseen = self.query_one(Conversation).unseen
        self.query_one(StatusLine).show(self.chat, unseen=unseen, draft=self._draft_text())

    def _show_figures(self) -> None:
        layers = self._service.layer_stats()
        total: CacheStats | None = sum_layers(layers) if layers else None
        if total is not None:
            self._log.observe(time.time(), total)
        used, installed = memory.resident(), memory.installed()
        ram = f"RAM {used / 2**30:.1f}/{installed / 2**30:.0f} GiB"
        speed = self.chat.meter.speed().now
        self.query_one(HeaderBar).show(self.chat.model, total, speed, ram)
        self.query_one(Conversation).mark(total)
        self.query_one(SidePane).show(self.chat, total, layers, self._log)

    def _draft_text(self) -> str:
        pieces = [f"@ {each.name}" for each in self._attachments]
        return " · ".join([*pieces, self._draft_cost] if self._draft_cost else pieces)

    def _placeholder(self, maker: LineMaker) -> list[Strip]:
        return maker.wrap("Ask something.", maker.palette.muted)

    # -- typing --

    @on(Prompt.Submitted)
    def _submitted(self) -> None:
        self.action_submit()

    def action_submit(self) -> None:
        """Send what is typed."""
        prompt = self.query_one(Prompt)
        if not prompt.text.strip() and not self._attachments:
            return
        draft = Draft(text=prompt.text.strip(), attachments=tuple(self._attachments))
        try:
            self.chat.send(draft)
        except EmberError as error:
            self._refuse(error)
            return
        prompt.take()
        self._attachments.clear()
        self.query_one(Conversation).action_follow()

    def action_newline(self) -> None:
        """Break the line."""
        self.query_one(Prompt).action_newline()

    @on(Prompt.Changed)
    def _typed(self) -> None:
        if self._counting is not None:
            self._counting.cancel()
        self._counting = asyncio.create_task(self._count())

    async def _count(self) -> None:
        """Count the draft's tokens a moment after the last key."""
        await asyncio.sleep(_COUNT_AFTER)
        text = "\n".join([*(each.text for each in self._attachments), self.query_one(Prompt).text])
        tokens = await asyncio.to_thread(self._service.count, text) if text.strip() else 0
        model = self.chat.model
        if not tokens or model is None:
            self._draft_cost = ""
        else:
            fits = "fits" if tokens < model.window else f"window holds {model.window}"
            self._draft_cost = f"{figures.count(tokens)} tok · {fits}"
        self._show_status()

    @on(Prompt.LongPaste)
    def _pasted(self, event: Prompt.LongPaste) -> None:
        name = f"pasted text {len(self._attachments) + 1}"
        self._attachments.append(Attachment(name=name, text=event.text))
        self._typed()

    @on(Prompt.EmptyKey)
    def _empty_key(self, event: Prompt.EmptyKey) -> None:
        conversation = self.query_one(Conversation)
        match event.key:
            case "pageup":
                conversation.action_page_up()
            case "pagedown":
                conversation.action_page_down()
            case "home":
                conversation.action_top()
            case "end":
                conversation.action_follow()
            case "ctrl+d":
                self.app.exit()

    # -- actions --

    def action_stop(self) -> None:
        """Stop what runs, else go back to the prompt."""
        if self.chat.busy:
            self.chat.stop()
        self.query_one(Prompt).focus()

    def action_interrupt(self) -> None:
        """Ctrl-C: copies a selection, stops an answer, and the second time quits."""
        if self.chat.busy and not self.chat.stopping:
            self.chat.stop()
        else:
            self.app.exit()

    def action_retry(self) -> None:
        """Answer the last question again."""
        try:
            self.chat.retry()
        except EmberError as error:
            self._refuse(error)

    def action_toggle_panes(self) -> None:
        """Show or hide the side pane."""
        self.toggle_class("panes-off")

    def action_follow(self) -> None:
        """Go to the end of the conversation."""
        self.query_one(Conversation).action_follow()

    def _refuse(self, error: EmberError) -> None:
        self.notify(str(error), severity="warning", markup=False)
