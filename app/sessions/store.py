"""Chats in SQLite: saved as they grow, found again after any end of the program.

Write-ahead logging: each call is one transaction, whole or not there, and
several programs may have the file open. What a chat in memory knows of its rows
changes only once they are committed. Use from one thread.
"""

import json
import secrets
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import platformdirs

from app.sessions import rows
from app.sessions.chat import Chat, ChatMessage, Saved
from app.sessions.claims import Claims
from app.sessions.file import connected, opened, told
from app.sessions.schema import StoreError, roll_back
from app.sessions.variants import joined, places

# A screen waits for a save; one that is refused is tried again later.
_SAVE_SECONDS, _LAST_SAVE_SECONDS = 0.3, 3.0
_SNIPPET = 60
# SQLite compares no pattern of more than 50,000 bytes.
_MOST_SEARCHED = 1000
_COPY = " (copy)"
_OPEN_FOLDER = "open"


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
    """The saved chats. notes: what the user should know about the file, a line each."""

    def __init__(
        self, connection: sqlite3.Connection, notes: Iterable[str], claims: Claims
    ) -> None:
        """`open` and `in_memory` are for others."""
        self.notes = tuple(notes)
        self._claims = claims
        self._connection = connection
        self.wait(_SAVE_SECONDS)

    @classmethod
    def open(cls, path: Path) -> Self:
        """The store in a file, made if need be, mended if it is damaged. Raises StoreError."""
        return cls(*opened(path), Claims(path.resolve().parent / _OPEN_FOLDER))

    @classmethod
    def in_memory(cls, notes: Iterable[str] = ()) -> Self:
        """A store that is gone with the program."""
        return cls(connected(":memory:"), notes, Claims(None))

    @property
    def is_kept(self) -> bool:
        """Whether chats outlive the program."""
        return self._claims.folder is not None

    def close(self) -> None:
        """Give the file back; what was saved is safe already."""
        with suppress(sqlite3.Error):
            self._connection.close()
        self._claims.close()

    def wait(self, seconds: float = _LAST_SAVE_SECONDS) -> None:
        """Wait so long, from now on, for another program that writes."""
        with told("open"):
            self._connection.execute(f"PRAGMA busy_timeout = {seconds * 1000:.0f}")

    # -- who has which chat open --

    def claim(self, chat: int) -> bool:
        """Have a chat to oneself, as after its first save; False where another program has it."""
        return self._claims.take(chat)

    def release(self, chat: int) -> None:
        """Let other programs have a chat."""
        self._claims.release(chat)

    def copy(self, chat: Chat) -> Chat:
        """A copy of a chat, which is saved once something else is said in it."""
        made = chat.copy()
        made.seen = _contents(made)
        return made

    # -- saving --

    def save(self, chat: Chat) -> bool:
        """Make the file hold the chat as it is now; a StoreError has changed nothing.

        Where another program has changed or deleted the chat since it was
        loaded or saved here, that one's words stay, and these become a chat of
        their own, a copy; returns whether that was so.
        """
        if not _differs(chat):
            return False
        with self._transaction("save"):
            known = self._untouched(chat.saved)
            is_copy = chat.saved is not None and known is None
            title = chat.title + _COPY if is_copy else chat.title
            saved = self._write(chat, title, known)
        chat.title, chat.saved = title, saved
        self._claims.take(saved.id)
        return is_copy

    def rename(self, chat: int, title: str) -> None:
        """Give a chat another title."""
        with self._transaction("rename"):
            self._connection.execute(
                "UPDATE chats SET title = ? WHERE id = ?", (rows.storable(title), chat)
            )

    def delete(self, chat: int) -> None:
        """Forget a chat. Raises StoreError where another program has it open."""
        if not self._claims.take(chat):
            raise StoreError("this chat is open in another window: close it there first")
        with self._transaction("delete"):
            self._connection.execute("DELETE FROM chats WHERE id = ?", (chat,))
        # The journal has it too, until another program that reads it lets it go.
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._claims.release(chat)

    # -- finding --

    def chats(self, search: str = "") -> list[ChatSummary]:
        """All chats, or those whose title or text contains `search`; the last used first."""
        found = self._read(
            """
            SELECT c.id, c.title, c.model, c.updated,
                   (SELECT COUNT(*) FROM messages m
                    WHERE m.chat = c.id AND m.aside = 0) AS messages,
                   (SELECT CASE WHEN m.text LIKE :like ESCAPE '\\' THEN m.text
                                ELSE m.thinking END
                    FROM messages m
                    WHERE m.chat = c.id AND (m.text LIKE :like ESCAPE '\\'
                                             OR m.thinking LIKE :like ESCAPE '\\')
                    ORDER BY m.aside, m.position LIMIT 1) AS hit
            FROM chats c
            WHERE :like = '%%' OR c.title LIKE :like ESCAPE '\\' OR hit IS NOT NULL
            ORDER BY c.used DESC, c.id DESC
            """,
            {"like": f"%{_escaped(rows.storable(search[:_MOST_SEARCHED]))}%"},
        )
        return [
            ChatSummary(
                id=row["id"],
                title=rows.text(row["title"]),
                model=rows.text(row["model"]),
                updated=rows.seconds(row["updated"]),
                messages=row["messages"],
                snippet=_snippet(rows.text(row["hit"]), search) if search else "",
            )
            for row in found
        ]

    def questions(self, most: int) -> list[str]:
        """The last questions of all chats, oldest first."""
        found = self._read(
            "SELECT text FROM messages WHERE role = 'user' AND text != '' "
            "ORDER BY id DESC LIMIT :most",
            {"most": most},
        )
        return [rows.text(row["text"]) for row in reversed(found)]

    def load(self, chat: int) -> Chat:
        """A chat with its messages. Raises StoreError where there is none of that number."""
        with self._transaction("read", begin="BEGIN"):
            top = self._read("SELECT * FROM chats WHERE id = :chat", {"chat": chat})
            found = self._read(
                "SELECT * FROM messages WHERE chat = :chat ORDER BY position, id", {"chat": chat}
            )
        if not top:
            raise StoreError(f"there is no chat number {chat}: it may have been deleted")
        placed = rows.places(found)
        messages = joined(placed)
        made = Chat(
            title=rows.text(top[0]["title"]),
            model=rows.text(top[0]["model"]),
            system=rows.text(top[0]["system"]),
            sampling=rows.sampling(top[0]["sampling"]),
            left_out=rows.count(top[0]["left_out"], len(messages)),
            messages=messages,
            damaged=sum(not rows.is_whole(row) for row in found),
        )
        for message in messages[: made.left_out]:
            message.end = 0
        made.saved = Saved(
            id=chat,
            stamp=top[0]["stamp"],
            title=made.title,
            context=made.context,
            messages={
                each.message: (row["id"], rows.held(each))
                for each, row in zip(placed, found, strict=True)
            },
        )
        last = messages[-1] if messages else None
        if last is not None and last.variants and not last.has_words and not last.content:
            # Whoever began another answer died before its first word.
            made.withdraw(last)
        return made

    def latest(self) -> Chat | None:
        """The chat that was used last, or None."""
        found = self._read("SELECT id FROM chats ORDER BY used DESC, id DESC LIMIT 1")
        return self.load(found[0]["id"]) if found else None

    # -- one transaction --

    def _untouched(self, saved: Saved | None) -> Saved | None:
        """What was saved, if nobody has changed it since."""
        if saved is None:
            return None
        found = self._read("SELECT stamp FROM chats WHERE id = :id", {"id": saved.id})
        return saved if found and found[0]["stamp"] == saved.stamp else None

    def _write(self, chat: Chat, title: str, known: Saved | None) -> Saved:
        """Write what differs from the rows that are known."""
        number, stamp = self._write_chat(chat, title, known)
        gone = {} if known is None else dict(known.messages)
        after: dict[ChatMessage, tuple[int, tuple[object, ...]]] = {}
        for place in places(chat.messages):
            was = gone.pop(place.message, None)
            row, held = was or (None, None)
            now = rows.held(place)
            if row is None or held != now:
                follows = after[place.follows][0] if place.follows else 0
                row = self._put("messages", row, {"chat": number, **rows.values(place, follows)})
            after[place.message] = (row, now)
        for row, _ in gone.values():
            self._connection.execute("DELETE FROM messages WHERE id = ?", (row,))
        return Saved(id=number, stamp=stamp, title=title, context=chat.context, messages=after)

    def _write_chat(self, chat: Chat, title: str, known: Saved | None) -> tuple[int, int]:
        """Returns the chat's row and its new stamp."""
        stamp = secrets.randbits(62)
        values: dict[str, object] = {
            "model": rows.storable(chat.model),
            "system": rows.storable(chat.system),
            "left_out": chat.left_out,
            "sampling": json.dumps(dict(chat.sampling)) if chat.sampling else "",
            "stamp": stamp,
        }
        # Another program may have renamed the chat meanwhile.
        if known is None or known.title != title:
            values["title"] = rows.storable(title)
        number = self._put("chats", known.id if known else None, values)
        self._connection.execute(
            "UPDATE chats SET used = (SELECT COALESCE(MAX(used), 0) + 1 FROM chats) WHERE id = ?",
            (number,),
        )
        return number, stamp

    def _put(self, table: str, row: int | None, values: dict[str, object]) -> int:
        """Change a row, or make one; returns its number."""
        values |= {"updated": time.time()}
        if row is not None:
            changes = ", ".join(f"{name} = :{name}" for name in values)
            self._connection.execute(
                f"UPDATE {table} SET {changes} WHERE id = :id", {**values, "id": row}
            )
            return row
        if table == "chats":
            values |= {"created": values["updated"]}
        names, places = ", ".join(values), ", ".join(f":{name}" for name in values)
        made = self._connection.execute(
            f"INSERT INTO {table} ({names}) VALUES ({places})", values
        ).lastrowid
        assert made is not None
        return made

    def _read(self, query: str, values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        with told("read"):
            return [dict(row) for row in self._connection.execute(query, values or {})]

    @contextmanager
    def _transaction(self, what: str, *, begin: str = "BEGIN IMMEDIATE") -> Iterator[None]:
        with told(what):
            self._connection.execute(begin)
            try:
                yield
                self._connection.execute("COMMIT")
            finally:
                roll_back(self._connection)


def _differs(chat: Chat) -> bool:
    """Whether the user would miss anything of the chat as it was saved."""
    saved = chat.saved
    if saved is None:
        return bool(chat.messages) and _contents(chat) != chat.seen
    held = {each: saved.messages[each][1] for each in saved.messages}
    now = {each.message: rows.held(each) for each in places(chat.messages)}
    return (chat.title, chat.context) != (saved.title, saved.context) or held != now


def _contents(chat: Chat) -> tuple[object, ...]:
    """All of a chat that is saved."""
    return chat.title, chat.context, *map(rows.held, places(chat.messages))


def _escaped(search: str) -> str:
    return search.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _snippet(text: str, search: str) -> str:
    """The words around the hit, on one line."""
    line = " ".join(text.split())
    at = max(line.lower().find(search.lower()) - _SNIPPET // 3, 0)
    return ("…" if at else "") + line[at : at + _SNIPPET]
