"""What must be on disk: a model of what one window has sent, held against the database."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

_WAIT_SECONDS = 20.0


class FaultError(Exception):
    """Something that must hold does not."""


class Kept:
    """The words of one window that have been saved, each in a question of its own.

    window: what its words begin with.
    """

    def __init__(self, database: Path, window: str) -> None:
        self._database, self._window = database, window
        self._known = set[str]()

    def has(self, word: str) -> bool:
        """Whether a question with the word is saved now."""
        return any(word in each for each in _questions(self._database))

    def look(self) -> None:
        """Take note of all words that are saved."""
        self._known |= self._saved()

    def vanished(self) -> Sequence[str]:
        """Words that were saved at the last look and are not any more; told once."""
        saved = self._saved()
        gone, self._known = sorted(self._known - saved), saved
        return gone

    @contextmanager
    def replacing(self) -> Iterator[None]:
        """Within this, one word is replaced by another."""
        before = self._saved()
        yield
        gone = before - self._saved()
        if len(gone) > 1:
            raise FaultError(f"one question was replaced, and {sorted(gone)} are gone")
        self._known -= gone

    def require(self) -> None:
        """All words that were saved are there. Raises FaultError."""
        if gone := self.vanished():
            raise FaultError(f"saved, and not in the database any more: {gone}")

    def _saved(self) -> set[str]:
        """Our words are the last lines of questions, and of no other window."""
        ends = (each.rsplit("\n", 1)[-1] for each in _questions(self._database))
        return {each for each in ends if each.startswith(self._window) and each[1:].isdecimal()}


def require_sound(database: Path) -> None:
    """The database is whole, and no two windows have written into one chat. Raises FaultError."""
    with _opened(database) as connection:
        (found,) = connection.execute("PRAGMA integrity_check").fetchone()
        if found != "ok":
            raise FaultError(f"the database is damaged: {found}")
        chats = [number for (number,) in connection.execute("SELECT id FROM chats")]
        for number in chats:
            rows = connection.execute(
                "SELECT position FROM messages WHERE chat = ? AND aside = 0 ORDER BY position",
                (number,),
            ).fetchall()
            positions = [position for (position,) in rows]
            if positions != list(range(len(positions))):
                raise FaultError(f"chat {number} has the messages that it shows at {positions}")
        if connection.execute(
            "SELECT 1 FROM messages WHERE chat NOT IN (SELECT id FROM chats)"
        ).fetchone():
            raise FaultError("there are messages of no chat")


def _questions(database: Path) -> list[str]:
    with _opened(database) as connection:
        found = connection.execute("SELECT text FROM messages WHERE role = 'user'").fetchall()
    return [text for (text,) in found]


@contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(database, timeout=_WAIT_SECONDS)) as connection:
        yield connection
