"""Keeps chats on disk while they are held.

A disk that fails is told once, and once that it works again; the chat goes on.
What could not be written stays known and is tried again.
"""

import time
from collections.abc import Callable

from app.sessions.chat import Chat
from app.sessions.schema import StoreError
from app.sessions.store import SessionStore

_SECONDS = 1.0
_AGAIN_SECONDS = 5.0


class Autosave:
    """Writes to a store; `tell` is called with what the user should know."""

    def __init__(
        self,
        store: SessionStore,
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._tell, self._clock = store, tell, clock
        self._tried_at = 0.0
        self._unsaved: list[Chat] = []

    def save(self, chat: Chat) -> None:
        """Write what the file lacks of a chat, and of those that could not be written before."""
        failed_before = bool(self._unsaved)
        error = self._try(chat)
        if error is not None and not failed_before:
            self._tell(f"{error}; this chat is not saved until then")
        elif error is None and failed_before:
            self._tell("the chat is saved again")

    def save_if_due(self, chat: Chat) -> None:
        """As `save`, some time after the last save; later where that has failed."""
        wait = _AGAIN_SECONDS if self._unsaved else _SECONDS
        if self._clock() - self._tried_at >= wait:
            self.save(chat)

    def retry_if_due(self, chat: Chat) -> None:
        """As `save_if_due`, where the last save has failed."""
        if self._unsaved:
            self.save_if_due(chat)

    def forget(self, number: int) -> None:
        """The user has deleted this chat: it is not to be tried again."""
        self._unsaved = [each for each in self._unsaved if each.id != number]

    def finish(self, chat: Chat) -> StoreError | None:
        """Save for the last time, with patience; returns why that failed, where it did."""
        try:
            self._store.wait()
        except StoreError as error:
            return error
        return self._try(chat)

    def _try(self, chat: Chat) -> StoreError | None:
        """Write what is not saved; returns the first failure."""
        first = None
        waiting, self._unsaved = dict.fromkeys([*self._unsaved, chat]), []
        for each in waiting:
            try:
                if self._store.save(each):
                    self._tell(
                        "this chat was changed or deleted in another window: it goes on here "
                        f"as “{each.title}”"
                    )
            except StoreError as error:
                self._unsaved.append(each)
                first = first or error
        self._tried_at = self._clock()
        return first
