"""The saved chats: search, open, rename, delete."""

import time
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from app.sessions.store import ChatSummary
from app.tui.controller import ChatController
from app.tui.screens.question import QuestionScreen
from app.tui.screens.text_input import TextInputScreen
from app.tui.text.inert import inert
from app.tui.text.palette import MUTED
from kvcache.errors import EmberError

_KEYS = "⏎ open · F2 rename · F8 delete · Esc close"


class ChatsScreen(ModalScreen[int | None]):
    """Ends with the number of the chat to open, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,ctrl+o", "dismiss", "Close", show=False),
        Binding("up", "move(-1)", "Above", show=False),
        Binding("down", "move(1)", "Below", show=False),
        Binding("pageup", "move(-8)", "Above", show=False),
        Binding("pagedown", "move(8)", "Below", show=False),
        Binding("f2", "rename", "Rename", show=False),
        Binding("f8", "delete", "Delete", show=False),
    ]

    def __init__(self, chat: ChatController) -> None:
        super().__init__()
        self._chat, self._store = chat, chat.store
        self._listed: list[ChatSummary] = []

    def compose(self) -> ComposeResult:
        with Vertical(classes="box tall") as box:
            box.border_title = "Chats"
            yield Input(placeholder="search titles and texts")
            yield OptionList(markup=False)
            yield Static(_KEYS, markup=False, classes="keys")

    def on_mount(self) -> None:
        """List all of them; typing searches, arrows choose."""
        self.query_one(OptionList).can_focus = False
        self.query_one(Input).focus()
        self._list()

    @on(Input.Changed)
    def _search(self) -> None:
        self._list()

    @on(Input.Submitted)
    def _open(self) -> None:
        if (chosen := self._chosen) is not None:
            self.dismiss(chosen.id)

    @on(OptionList.OptionSelected)
    def _clicked(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self._listed[event.option_index].id)

    def action_move(self, step: int) -> None:
        """Choose another chat."""
        chooser = self.query_one(OptionList)
        if self._listed:
            at = (chooser.highlighted or 0) + step
            chooser.highlighted = min(max(at, 0), len(self._listed) - 1)

    def action_rename(self) -> None:
        """Give the chosen chat another title."""
        chosen = self._chosen
        if chosen is None:
            return

        def done(title: str | None) -> None:
            if title:
                self._try_rename(chosen.id, title)

        self.app.push_screen(TextInputScreen("Rename", chosen.title), done)

    def action_delete(self) -> None:
        """Delete the chosen chat, once that is confirmed."""
        chosen = self._chosen
        if chosen is None:
            return
        if chosen.id == self._chat.chat.id:
            self.notify("this chat is open: begin another (^N), then delete it", markup=False)
            return

        def done(choice: str | None) -> None:
            if choice == "delete":
                self._store.delete(chosen.id)
                self._list()

        text = f"“{inert(chosen.title)}”, {chosen.messages} messages. It cannot be brought back."
        choices = {"keep": "Keep it", "delete": "Delete it"}
        self.app.push_screen(QuestionScreen("Delete this chat?", text, choices), done)

    def _try_rename(self, number: int, title: str) -> None:
        self._store.rename(number, title)
        if number == self._chat.chat.id:
            self._chat.chat.title = title
        self._list()

    @property
    def _chosen(self) -> ChatSummary | None:
        at = self.query_one(OptionList).highlighted
        return self._listed[at] if at is not None and at < len(self._listed) else None

    def _list(self) -> None:
        chooser = self.query_one(OptionList)
        at = chooser.highlighted or 0
        try:
            self._listed = self._store.chats(self.query_one(Input).value.strip())
        except EmberError as error:
            self._listed = []
            self.notify(str(error), severity="error", markup=False)
        chooser.set_options(Option(_line(each, self._chat.chat.id)) for each in self._listed)
        if self._listed:
            chooser.highlighted = min(at, len(self._listed) - 1)


def _line(chat: ChatSummary, current: int | None) -> Content:
    when = time.strftime("%d %b %H:%M", time.localtime(chat.updated))
    mark = "● " if chat.id == current else "  "
    title = " ".join(inert(chat.title).split()) or "untitled"
    parts = [
        (mark, "$accent"),
        (title, "bold"),
        (f"\n  {when} · {chat.messages} messages · {chat.model}", MUTED),
    ]
    if chat.snippet:
        parts.append((f"\n  {inert(chat.snippet)}", MUTED))
    return Content.assemble(*parts)
