"""The tables of the chat store, version by version.

A step is never changed once released; a change of the tables is another step.
`PRAGMA user_version` holds how many steps a file has had.
"""

import sqlite3
from contextlib import closing, suppress

from kvcache.errors import EmberError


class StoreError(EmberError):
    """The chats on disk cannot be read or written."""


class DamagedError(StoreError):
    """The file is not what ember made: no database, or not these tables."""


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
# used: counts up over all chats with every save, as a clock may be set back.
# stamp: a number drawn by every save, by which one window sees what another did.
_SECOND = (
    "ALTER TABLE chats ADD COLUMN used INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE chats ADD COLUMN stamp INTEGER NOT NULL DEFAULT 0",
    """
    UPDATE chats SET used = (
        SELECT COUNT(*) FROM chats AS other
        WHERE other.updated < chats.updated
           OR other.updated = chats.updated AND other.id <= chats.id
    )
    """,
    "DROP INDEX chats_by_update",
    "CREATE INDEX chats_by_use ON chats (used)",
)
_THIRD = (
    "ALTER TABLE messages ADD COLUMN thinking TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE messages ADD COLUMN thinking_tokens INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE messages ADD COLUMN thinking_seconds REAL NOT NULL DEFAULT 0",
)
# left_out: messages at the start that the model does not read. sampling: JSON, see `rows`.
_FOURTH = (
    "ALTER TABLE chats ADD COLUMN left_out INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE chats ADD COLUMN sampling TEXT NOT NULL DEFAULT ''",
)
# aside: 0 for a message that is shown, else as `variants.Way`. follows: of one aside, the row of
# the message before it; 0: it is at the beginning. number: which of its variants it is.
_FIFTH = (
    "ALTER TABLE messages ADD COLUMN aside INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE messages ADD COLUMN follows INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE messages ADD COLUMN number INTEGER NOT NULL DEFAULT 0",
)
_STEPS = (_FIRST, _SECOND, _THIRD, _FOURTH, _FIFTH)
IS_IN_ORDER = "typeof(used) = 'integer' AND used BETWEEN 0 AND 1 << 52"
TABLES = ("chats", "messages")


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the tables to the present version.

    Raises StoreError for a newer file, DamagedError for one that is not what its
    version says.
    """
    version = _version(connection)
    if version > len(_STEPS):
        raise StoreError(
            f"the chats were saved by a newer ember (format {version}, this one knows "
            f"{len(_STEPS)}): update ember"
        )
    if version < 0:
        raise DamagedError(f"the saved chats have the format {version}")
    while (version := _version(connection)) < len(_STEPS):
        connection.execute("BEGIN IMMEDIATE")
        try:
            # Another process may have made the step while this one waited for the lock.
            if _version(connection) == version:
                for statement in _STEPS[version]:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {version + 1}")
            connection.execute("COMMIT")
        except BaseException:  # raised again
            roll_back(connection)
            raise


def check(connection: sqlite3.Connection) -> None:
    """Read the whole file once. Raises DamagedError where it is not what ember made."""
    (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise DamagedError(f"the saved chats are damaged ({' '.join(str(found).split())})")
    if connection.execute(f"SELECT 1 FROM chats WHERE NOT ({IS_IN_ORDER}) LIMIT 1").fetchone():
        raise DamagedError("the saved chats are damaged (their order)")
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as expected:
        migrate(expected)
        for table in TABLES:
            missing = columns(expected, table).keys() - columns(connection, table).keys()
            if missing:
                raise DamagedError(f"the saved chats have no {table}.{min(missing)}")


def columns(connection: sqlite3.Connection, table: str) -> dict[str, object]:
    """The columns of a table, each with a value that may stand where there is none."""
    rows = connection.execute(f"PRAGMA table_info({table})").fetchall()
    return {name: {"TEXT": "", "INTEGER": 0, "REAL": 0.0}.get(kind) for _, name, kind, *_ in rows}


def roll_back(connection: sqlite3.Connection) -> None:
    """End a transaction that failed; SQLite may have ended it itself."""
    if connection.in_transaction:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])
