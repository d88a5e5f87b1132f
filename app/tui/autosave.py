"""Keeps a chat on disk while it is held.

A disk that fails is told once; the chat goes on without it.
"""

import time
from collections.abc import Callable

from app.sessions.chat import Chat, ChatMessage
from app.sessions.schema import StoreError
from app.sessions.store import SessionStore

_SECONDS = 1.0


class Autosave:
    """Writes to a store; `tell` is called with what the user should know."""

    def __init__(
        self,
        store: SessionStore,
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._tell, self._clock = store, tell, clock
        self._saved_at = 0.0
        self._failed = False

    def save(self, chat: Chat, message: ChatMessage) -> None:
        """Write a message of a chat, new or changed."""
        self._saved_at = self._clock()
        self._write(lambda: self._store.save(chat, message))

    def save_if_due(self, chat: Chat, message: ChatMessage) -> None:
        """As `save`, if a second has gone by since something was saved."""
        if self._clock() - self._saved_at >= _SECONDS:
            self.save(chat, message)

    def save_all(self, chat: Chat) -> None:
        """Write a chat that is not there yet."""
        self._write(lambda: self._store.save_all(chat))

    def cut(self, chat: Chat) -> None:
        """Forget the messages that the chat has no longer."""
        self._write(lambda: self._store.cut(chat))

    def _write(self, step: Callable[[], None]) -> None:
        try:
            step()
        except StoreError as error:
            if not self._failed:
                self._tell(f"this chat is not saved: {error}")
            self._failed = True
        else:
            self._failed = False
