"""Which chat a window may go on with: the saved one, or a copy where another window has it."""

from collections.abc import Callable

from app.sessions.chat import Chat
from app.sessions.store import SessionStore


def opened(store: SessionStore, chat: Chat, before: Chat, tell: Callable[[str], None]) -> Chat:
    """The chat to go on with, claimed; the one before is left to others.

    tell: is given what the user should know of it.
    """
    if chat.id is not None and not store.claim(chat.id):
        chat = store.copy(chat)
        tell(
            "this chat is open in another window: what is said here becomes a chat of its "
            f"own, “{chat.title}”"
        )
    if before.id is not None and before.id != chat.id:
        store.release(before.id)
    if chat.damaged:
        tell(f"{chat.damaged} messages of this chat are damaged: what can be read is shown")
    return chat
