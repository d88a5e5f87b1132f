"""The tables of the chat store, version by version.

A step is never changed once released; a change of the tables is another step.
`PRAGMA user_version` holds how many steps a file has had.
"""

import sqlite3

from kvcache.errors import EmberError


class StoreError(EmberError):
    """The chats on disk cannot be read or written."""


_FIRST = (
    """
    CREATE TABLE chats (
        id INTEGER PRIMARY KEY,
        title TEXT NOT NULL,
        model TEXT NOT NULL,
        system TEXT NOT NULL,
        created REAL NOT NULL,
        updated REAL NOT NULL
    )
    """,
    "CREATE INDEX chats_by_update ON chats (updated)",
    """
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY,
        chat INTEGER NOT NULL REFERENCES chats (id) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        role TEXT NOT NULL,
        text TEXT NOT NULL,
        attachments TEXT NOT NULL,
        state TEXT NOT NULL,
        figures TEXT,
        error TEXT,
        updated REAL NOT NULL
    )
    """,
    "CREATE INDEX messages_by_chat ON messages (chat, position)",
)
_STEPS = (_FIRST,)


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the tables to the present version. Raises StoreError for a newer file."""
    version = _version(connection)
    if version > len(_STEPS):
        raise StoreError(
            f"the chats were saved by a newer ember (format {version}, this one knows "
            f"{len(_STEPS)}): update ember"
        )
    while (version := _version(connection)) < len(_STEPS):
        connection.execute("BEGIN IMMEDIATE")
        # Another process may have made the step while this one waited for the lock.
        if _version(connection) == version:
            for statement in _STEPS[version]:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {version + 1}")
        connection.execute("COMMIT")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
