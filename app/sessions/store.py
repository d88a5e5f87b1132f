"""Chats in SQLite: saved as they grow, found again after any end of the program.

Write-ahead logging: each call is one transaction, whole or not there, and
several programs may have the file open. Use from one thread.
"""

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import platformdirs

from app.sessions.chat import Attachment, Chat, ChatMessage, Figures, State
from app.sessions.schema import StoreError, migrate
from models.chat_template import Role

_BUSY_SECONDS = 3.0
_SNIPPET = 60


def default_path() -> Path:
    """Where chats are kept: in the user's data folder."""
    return platformdirs.user_data_path("ember") / "chats.db"


@dataclass(frozen=True, kw_only=True)
class ChatSummary:
    """One line of the list of chats. snippet: where a search found its text."""

    id: int
    title: str
    model: str
    updated: float
    messages: int
    snippet: str = ""


class SessionStore:
    """The saved chats."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Raises StoreError; `open` and `in_memory` are easier to call."""
        self._connection = connection
        with _told("open"):
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            migrate(connection)

    @classmethod
    def open(cls, path: Path) -> Self:
        """The store in a file, made if need be. Raises StoreError."""
        with _told(f"open {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)
        try:
            return cls(connection)
        except StoreError:
            connection.close()
            raise

    @classmethod
    def in_memory(cls) -> Self:
        """A store that is gone with the program."""
        return cls(sqlite3.connect(":memory:", isolation_level=None))

    def close(self) -> None:
        """Give the file back."""
        self._connection.close()

    # -- saving --

    def save(self, chat: Chat, message: ChatMessage) -> None:
        """Save a message of the chat, new or changed, and the chat's own fields."""
        with self._transaction("save"):
            self._save_chat(chat)
            self._save_message(chat, message)

    def save_all(self, chat: Chat) -> None:
        """Save the chat with all its messages, as after a fork."""
        with self._transaction("save"):
            self._save_chat(chat)
            for message in chat.messages:
                self._save_message(chat, message)

    def cut(self, chat: Chat) -> None:
        """Forget the messages that the chat no longer has."""
        if chat.id is None:
            return
        with self._transaction("save"):
            self._connection.execute(
                "DELETE FROM messages WHERE chat = ? AND position >= ?",
                (chat.id, len(chat.messages)),
            )
            self._save_chat(chat)

    def rename(self, chat: int, title: str) -> None:
        """Give a chat another title."""
        with self._transaction("rename"):
            self._connection.execute("UPDATE chats SET title = ? WHERE id = ?", (title, chat))

    def delete(self, chat: int) -> None:
        """Forget a chat."""
        with self._transaction("delete"):
            self._connection.execute("DELETE FROM chats WHERE id = ?", (chat,))

    # -- finding --

    def chats(self, search: str = "") -> list[ChatSummary]:
        """All chats, or those whose title or text contains `search`; the newest first."""
        with _told("read"):
            rows = self._connection.execute(
                """
                SELECT c.id, c.title, c.model, c.updated,
                       (SELECT COUNT(*) FROM messages m WHERE m.chat = c.id),
                       (SELECT m.text FROM messages m
                        WHERE m.chat = c.id AND m.text LIKE :like ESCAPE '\\'
                        ORDER BY m.position LIMIT 1) AS hit
                FROM chats c
                WHERE :like = '%%' OR c.title LIKE :like ESCAPE '\\' OR hit IS NOT NULL
                ORDER BY c.updated DESC, c.id DESC
                """,
                {"like": f"%{_escaped(search)}%"},
            ).fetchall()
        return [
            ChatSummary(
                id=row[0],
                title=row[1],
                model=row[2],
                updated=row[3],
                messages=row[4],
                snippet=_snippet(row[5], search) if search else "",
            )
            for row in rows
        ]

    def load(self, chat: int) -> Chat:
        """A chat with its messages. Raises StoreError where there is none of that number."""
        with _told("read"):
            row = self._connection.execute(
                "SELECT title, model, system FROM chats WHERE id = ?", (chat,)
            ).fetchone()
            messages = self._connection.execute(
                "SELECT id, role, text, attachments, state, figures, error FROM messages "
                "WHERE chat = ? ORDER BY position",
                (chat,),
            ).fetchall()
        if row is None:
            raise StoreError(f"there is no chat number {chat}: it may have been deleted")
        return Chat(
            id=chat,
            title=row[0],
            model=row[1],
            system=row[2],
            messages=[_message(each) for each in messages],
        )

    def latest(self) -> Chat | None:
        """The chat that was used last, or None."""
        with _told("read"):
            row = self._connection.execute(
                "SELECT id FROM chats ORDER BY updated DESC, id DESC LIMIT 1"
            ).fetchone()
        return None if row is None else self.load(row[0])

    # -- one row --

    def _save_chat(self, chat: Chat) -> None:
        now = time.time()
        if chat.id is None:
            chat.id = self._connection.execute(
                "INSERT INTO chats (title, model, system, created, updated) VALUES (?, ?, ?, ?, ?)",
                (_storable(chat.title), chat.model, _storable(chat.system), now, now),
            ).lastrowid
            return
        self._connection.execute(
            "UPDATE chats SET title = ?, model = ?, system = ?, updated = ? WHERE id = ?",
            (_storable(chat.title), chat.model, _storable(chat.system), now, chat.id),
        )

    def _save_message(self, chat: Chat, message: ChatMessage) -> None:
        values = (
            _storable(message.text),
            json.dumps([asdict(each) for each in message.attachments]),
            message.state.value,
            json.dumps(asdict(message.figures)) if message.figures else None,
            _storable(message.error) if message.error else None,
            time.time(),
        )
        if message.id is None:
            message.id = self._connection.execute(
                "INSERT INTO messages (text, attachments, state, figures, error, updated, chat, "
                "position, role) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*values, chat.id, chat.messages.index(message), message.role.value),
            ).lastrowid
            return
        self._connection.execute(
            "UPDATE messages SET text = ?, attachments = ?, state = ?, figures = ?, error = ?, "
            "updated = ? WHERE id = ?",
            (*values, message.id),
        )

    @contextmanager
    def _transaction(self, what: str) -> Iterator[None]:
        with _told(what):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:  # whatever it is, Ctrl-C included, and raised again
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")


def _message(row: tuple[int, str, str, str, str, str | None, str | None]) -> ChatMessage:
    number, role, text, attachments, state, figures, error = row
    # Whoever was writing this answer has died.
    known = State.STOPPED if state == State.STREAMING.value else State(state)
    return ChatMessage(
        id=number,
        role=Role(role),
        text=text,
        attachments=tuple(Attachment(**each) for each in json.loads(attachments)),
        state=known,
        figures=Figures(**json.loads(figures)) if figures else None,
        error=error,
    )


def _storable(text: str) -> str:
    """Text that SQLite takes: lone surrogates have no UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _escaped(search: str) -> str:
    return search.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _snippet(text: str | None, search: str) -> str:
    """The words around the hit, on one line."""
    if text is None:
        return ""
    line = " ".join(text.split())
    at = max(line.lower().find(search.lower()) - _SNIPPET // 3, 0)
    return ("…" if at else "") + line[at : at + _SNIPPET]


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn a failure of SQLite or of the disk into a StoreError."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise StoreError(
            f"cannot {what} the saved chats ({error}): check the disk and its permissions"
        ) from error
