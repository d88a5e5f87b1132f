"""The file of the chats: opened, narrowed to its owner, and mended where it is damaged.

A damaged file is replaced by a fresh one that has all of it that can be read,
and is itself kept beside it under another name. Knows no chat, only rows.
"""

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from app import private
from app.sessions import rows
from app.sessions.schema import (
    IS_IN_ORDER,
    TABLES,
    DamagedError,
    StoreError,
    check,
    columns,
    migrate,
)
from kvcache.errors import reason

_OPEN_SECONDS, _LOOK_SECONDS = 3.0, 0.02
_JOURNALS = ("-wal", "-shm")
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DAMAGED = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_RESCUED = "rescued"
# What SQLite raises of a file: its messages quote the file's names, which may be no text.
_FAULTS = (sqlite3.Error, MemoryError, UnicodeDecodeError)


def opened(path: Path) -> tuple[sqlite3.Connection, list[str]]:
    """The file, made if need be, and what the user should know of it. Raises StoreError."""
    path = path.resolve()
    with told(f"open {path} for"):
        private.make_folder(path.parent)
    family = [path.with_name(path.name + suffix) for suffix in ("", *_JOURNALS)]
    notes = private.narrow([path.parent, *family])
    with _alone(path.parent):
        try:
            connection = _checked(path)
        except DamagedError as error:
            notes.append(_rescue(path, error))
            connection = _checked(path)
    return connection, notes


def connected(path: Path | str) -> sqlite3.Connection:
    """A connection with the present tables. Raises StoreError."""
    with told("open"):
        connection = sqlite3.connect(path, timeout=_OPEN_SECONDS, isolation_level=None)
        try:
            _set_up(connection)
            connection.execute("PRAGMA foreign_keys = ON")
            # Or what was deleted stays in the file until its place is wanted.
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            migrate(connection)
        except BaseException:  # raised again
            connection.close()
            raise
    return connection


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turn a failure of SQLite or of the disk into a StoreError."""
    try:
        yield
    except (*_FAULTS, OSError) as error:
        # Errors that the module itself raises have no code.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        damaged = code in _DAMAGED or isinstance(error, UnicodeDecodeError)
        because = f"{reason(error)}: check the disk and its permissions"
        if code in _LOCKED:
            because = "another program has locked their file: end it, or wait for it"
        raise (DamagedError if damaged else StoreError)(
            f"cannot {what} the chats: {because}"
        ) from error


def _checked(path: Path) -> sqlite3.Connection:
    with told(f"open {path} for"):
        private.touch(path)
    connection = connected(path)
    try:
        with told("read"):
            check(connection)
    except BaseException:  # raised again
        connection.close()
        raise
    return connection


def _set_up(connection: sqlite3.Connection) -> None:
    connection.row_factory = sqlite3.Row
    connection.text_factory = rows.text


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold off other programs that open the same file, where the disk has locks."""
    with told("open"):
        handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            _lock(handle)
        yield
    finally:
        os.close(handle)


def _lock(handle: int) -> None:
    """Wait for the lock, but not for ever: who holds it may be stopped."""
    deadline = time.monotonic() + _OPEN_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                return
            time.sleep(_LOOK_SECONDS)


# -- mending --


def _rescue(path: Path, error: DamagedError) -> str:
    """Put a fresh file in the place of a damaged one; returns what was done, a line."""
    if _is_in_use(path):
        raise StoreError(f"{error}; another ember has them open: end it, then start again")
    fresh = path.with_name(f"{path.name}.{_RESCUED}")
    with told("mend"):
        for suffix in ("", *_JOURNALS):
            fresh.with_name(fresh.name + suffix).unlink(missing_ok=True)
        private.touch(fresh)
        with closing(connected(fresh)) as target:
            chats, messages = _copy(path, target)
        aside = private.set_aside(path)
        for suffix in _JOURNALS:
            with suppress(FileNotFoundError):
                path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
        fresh.replace(path)
    found = f"{chats} with {messages} messages" if chats else "nothing"
    return f"the saved chats were damaged: {found} could be read, the damaged file is {aside}"


def _is_in_use(path: Path) -> bool:
    """Whether another connection has the file open."""
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            return error.sqlite_errorcode == sqlite3.SQLITE_BUSY
        except _FAULTS:
            return False
    return False


def _copy(path: Path, target: sqlite3.Connection) -> tuple[int, int]:
    """Copy every row that can be read; returns how many chats and messages there were."""
    source = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, isolation_level=None)
    with closing(source):
        _set_up(source)
        # So SQLite goes on where the file is too short, or one entry of its schema is wrong.
        source.execute("PRAGMA writable_schema = ON")
        chats, messages = (_readable(source, table) for table in TABLES)
    for row in messages.values():
        if not isinstance(row.get("chat"), int):
            row["chat"] = 0
        chats.setdefault(row["chat"], {"title": f"chat {row['chat']} ({_RESCUED})"})
    target.execute("BEGIN")
    for table, found in zip(TABLES, (chats, messages), strict=True):
        known = columns(target, table)
        for number, row in found.items():
            values = {name: row.get(name, value) for name, value in known.items()} | {"id": number}
            places = ", ".join("?" * len(values))
            target.execute(
                f"INSERT INTO {table} ({', '.join(values)}) VALUES ({places})",
                [known[name] if value is None else value for name, value in values.items()],
            )
    target.execute(f"UPDATE chats SET used = 0 WHERE NOT ({IS_IN_ORDER})")
    target.execute("COMMIT")
    return len(chats), len(messages)


def _readable(source: sqlite3.Connection, table: str) -> dict[int, dict[str, Any]]:
    """The rows of a table by number: up to the damage, and from the end back to it."""
    found: dict[int, dict[str, Any]] = {}
    for order in ("ASC", "DESC"):
        try:
            for row in source.execute(f"SELECT rowid AS number, * FROM {table} ORDER BY 1 {order}"):
                found.setdefault(row["number"], dict(row))
            break
        except _FAULTS:
            continue
    return found
