"""The saved chats: search, open, rename, delete."""

import time
from collections.abc import Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content

from app.chat.controller import ChatController
from app.inert import inert, inert_line
from app.model_names import title_of
from app.sessions.chat import shown_title
from app.sessions.store import ChatSummary
from app.tui.screens.dialog import closing
from app.tui.screens.search import SearchScreen
from app.tui.screens.text_input import TextInputScreen
from app.tui.text.colours import MUTED


class ChatsScreen(SearchScreen[int | None, ChatSummary]):
    """Ends with the number of the chat to open, or None."""

    TITLE = "Chats"
    PLACEHOLDER = "search titles and texts"
    KEYS = "⏎ open · F2 rename · F8 delete · Esc close"
    BINDINGS: ClassVar[list[BindingType]] = [
        *closing("ctrl+o"),
        Binding("f2", "rename", "Rename", show=False),
        Binding("f8", "delete", "Delete", show=False),
    ]

    def __init__(self, chat: ChatController) -> None:
        super().__init__()
        self._chat, self._store = chat, chat.store

    def find(self, text: str) -> Sequence[ChatSummary]:
        return self._store.chats(text)

    def line(self, item: ChatSummary) -> Content:
        return _line(item, self._chat.chat.id)

    def result(self, item: ChatSummary) -> int | None:
        return item.id

    def action_rename(self) -> None:
        """Give the chosen chat another title."""
        chosen = self.chosen
        if chosen is None:
            return

        def done(title: str | None) -> None:
            if title:
                self.attempt(lambda: self._give_title(chosen.id, title))

        self.app.push_screen(TextInputScreen("Rename", chosen.title), done)

    def action_delete(self) -> None:
        """Delete the chosen chat, once that is confirmed."""
        chosen = self.chosen
        if chosen is None:
            return
        if chosen.id == self._chat.chat.id:
            self.notify("this chat is open: begin another (^N), then delete it", markup=False)
            return
        text = f"“{shown_title(chosen.title)}”, {chosen.messages} messages"
        self.ask_to_delete("chat", text, lambda: self._chat.delete(chosen.id))

    def _give_title(self, number: int, title: str) -> None:
        if number == self._chat.chat.id:
            self._chat.rename(title)
        else:
            self._store.rename(number, title)


def _line(chat: ChatSummary, current: int | None) -> Content:
    when = time.strftime("%d %b %H:%M", time.localtime(chat.updated))
    mark = "● " if chat.id == current else "  "
    parts = [
        (mark, "$accent"),
        (shown_title(chat.title), "bold"),
        (f"\n  {when} · {chat.messages} messages · {inert_line(title_of(chat.model))}", MUTED),
    ]
    if chat.snippet:
        parts.append((f"\n  {inert(chat.snippet)}", MUTED))
    return Content.assemble(*parts)
