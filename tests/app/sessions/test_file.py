"""Files of chats that are damaged, or open to others."""

import fcntl
import os
import random
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from app.sessions.chat import Attachment, Chat, ChatMessage, State
from app.sessions.schema import StoreError
from app.sessions.store import SessionStore
from models.text.messages import Role
from tests.app.sessions.samples import FIGURES

FAMILY = ("", "-wal", "-shm")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of three chats, of several pages."""
    path = tmp_path / "ember" / "chats.db"
    store = SessionStore.open(path)
    for number in (1, 2, 3):
        chat = Chat(title=f"chat {number}", model="m", system="be kind")
        for at in range(7):
            role = Role.ASSISTANT if at % 2 else Role.USER
            chat.messages.append(ChatMessage(role=role, text=f"{number}.{at} " + "words " * 150))
        chat.messages[0].attachments = (Attachment(name="a.txt", text="one\ntwo"),)
        chat.messages[1].figures = FIGURES
        store.save(chat)
    store.close()
    return path


@contextmanager
def edited(path: Path) -> Iterator[sqlite3.Connection]:
    """The file in other hands, with its schema open to them."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        yield connection


def use(path: Path) -> tuple[list[Chat], tuple[str, ...]]:
    """Open, list, search, read and write, as the program does; what was read, and what was said."""
    store = SessionStore.open(path)
    try:
        chats = [store.load(each.id) for each in store.chats()]
        store.chats("words")
        added = Chat(title="added", messages=[ChatMessage(role=Role.USER, text="new")])
        store.save(added)
        for chat in chats:
            chat.messages.append(ChatMessage(role=Role.USER, text="more"))
            assert not store.save(chat)
        latest = store.latest()
        assert latest is not None
        assert latest.messages[-1].text == ("more" if chats else "new"), chats[-1].title
        return chats, store.notes
    finally:
        store.close()


def test_a_file_that_is_no_database_is_kept_aside(path: Path) -> None:
    path.write_bytes(b"not a database" * 100)
    chats, (note,) = use(path)
    aside = path.with_name("chats.db.damaged-1")
    assert chats == []
    assert note.endswith(f"nothing could be read, the damaged file is {aside}")
    assert aside.read_bytes() == b"not a database" * 100
    path.write_bytes(b"again")
    assert "chats.db.damaged-2" in use(path)[1][0]
    assert use(path)[1] == ()


@pytest.mark.parametrize(
    ("statement", "chats", "messages"),
    [
        ("DROP TABLE messages", 3, 0),
        ("DROP TABLE chats", 3, 21),
        ("DROP INDEX messages_by_chat", 3, 21),
        ("ALTER TABLE chats DROP COLUMN stamp", 3, 21),
        ("ALTER TABLE messages DROP COLUMN figures", 3, 21),
        ("ALTER TABLE messages RENAME TO letters", 3, 0),
        ("PRAGMA user_version = 1", 3, 21),
        ("PRAGMA user_version = -7", 3, 21),
        ("PRAGMA user_version = 0", 3, 21),
        ("DELETE FROM sqlite_master", 0, 0),
        ("DELETE FROM sqlite_master WHERE type = 'index'", 3, 21),
        ("UPDATE sqlite_master SET sql = 'nonsense' WHERE name = 'messages'", 0, 0),
        ("UPDATE sqlite_master SET rootpage = 3 WHERE name = 'chats'", 0, 21),
        ("UPDATE sqlite_master SET rootpage = 9999 WHERE name = 'messages_by_chat'", 3, 21),
    ],
)
def test_other_tables_are_mended_with_all_that_can_be_read(
    path: Path, statement: str, chats: int, messages: int
) -> None:
    with edited(path) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        if "DROP COLUMN" not in statement or "chats" not in statement:
            connection.execute("DROP INDEX IF EXISTS chats_by_use")
        connection.execute(statement)
    found, _ = use(path)
    assert len([each for each in found if each.title != "added"]) >= chats
    words = [each.text for chat in found for each in chat.messages if "words" in each.text]
    assert len(words) == messages


@pytest.mark.parametrize(
    "change",
    [
        "role = 'wizard'",
        "role = 7",
        "text = x'ff00fe'",
        "attachments = 'not json'",
        "attachments = '[{\"name\": 1}]'",
        "attachments = '[5]'",
        "attachments = 7.5",
    ],
)
def test_what_is_damaged_in_a_message_is_counted_and_the_rest_is_read(
    path: Path, change: str
) -> None:
    with edited(path) as connection:
        connection.execute(f"UPDATE messages SET {change} WHERE chat = 2 AND position = 0")
    chats, notes = use(path)
    assert notes == ()
    assert [(each.title, each.damaged) for each in chats] == [
        ("chat 3", 0),
        ("chat 2", 1),
        ("chat 1", 0),
    ]
    assert [len(each.messages) for each in chats] == [8, 8, 8]


@pytest.mark.parametrize(
    "change",
    [
        "state = 'thinking'",
        "state = NULL",
        "figures = '[1]'",
        "figures = '{\"tokens\": 1}'",
        "figures = x'00'",
        "figures = '" + "[" * 50_000 + "'",
        "figures = '{\"ttft_s\": NaN}'",
        "error = 5",
        "position = 'first'",
        "position = -9223372036854775808",
        "updated = 'never'",
    ],
)
def test_odd_figures_and_states_are_left_out(path: Path, change: str) -> None:
    with edited(path) as connection:
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, 'NOT NULL', '')")
        connection.execute("PRAGMA schema_version = 99")
    with edited(path) as connection:
        connection.execute(f"UPDATE messages SET {change} WHERE chat = 2 AND position = 1")
    chats, _ = use(path)
    assert [len(each.messages) for each in chats] == [8, 8, 8]
    (odd,) = (each for each in chats[1].messages if each.text.startswith("2.1"))
    assert odd.state in State
    assert odd.figures in (None, FIGURES)


@pytest.mark.parametrize("value", ["1e300", "-1e300", "9e999", "'soon'", "x'00'", "NULL"])
def test_a_time_that_is_none_is_still_a_time(path: Path, value: str) -> None:
    with edited(path) as connection:
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, 'NOT NULL', '')")
        connection.execute("PRAGMA schema_version = 99")
    with edited(path) as connection:
        connection.execute(f"UPDATE chats SET updated = {value}, used = {value} WHERE id = 1")
    assert all(0 <= each.updated < 1e12 for each in SessionStore.open(path).chats())
    assert len(use(path)[0]) == 3


def test_a_file_cut_short_gives_what_is_left(path: Path) -> None:
    whole = path.read_bytes()
    for length in (0, 1, 100, 4096, len(whole) // 2, len(whole) - 4096, len(whole) - 1):
        path.write_bytes(whole[:length])
        chats, _ = use(path)
        assert (length < len(whole) // 2) or chats


def test_a_half_written_journal_is_taken_as_far_as_it_goes(path: Path) -> None:
    store = SessionStore.open(path)
    for at in range(5):
        store.save(Chat(title=f"late {at}", messages=[ChatMessage(role=Role.USER, text="x" * 999)]))
    wal = path.with_name("chats.db-wal")
    main, journal = path.read_bytes(), wal.read_bytes()
    store.close()
    for length in range(0, len(journal), len(journal) // 9):
        for suffix in FAMILY:
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        path.write_bytes(main)
        wal.write_bytes(journal[:length])
        assert len(use(path)[0]) >= 3


def test_damaged_chats_that_another_program_has_open_are_left_alone(path: Path) -> None:
    other = SessionStore.open(path)
    other.chats()
    with edited(path) as connection:
        connection.execute("DELETE FROM sqlite_master WHERE name = 'messages_by_chat'")
        connection.execute("PRAGMA user_version = -7")
    with pytest.raises(StoreError, match="another ember has them open"):
        SessionStore.open(path)
    other.close()
    assert len(use(path)[0]) == 3


def test_a_program_that_is_stopped_while_it_opens_stops_no_other(path: Path) -> None:
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert len(use(path)[0]) == 3
    finally:
        os.close(handle)


def test_mutated_files_are_used_or_refused(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    rng = random.Random(13)
    kept = 0
    for number in range(200):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 3, 30))):
            at = rng.randrange(len(data)) if rng.random() < 0.6 else rng.randrange(600)
            size = rng.choice((1, 1, 4, 100, 4096))
            match rng.randrange(4):
                case 0:
                    data[at] ^= 1 << rng.randrange(8)
                case 1:
                    data[at : at + size] = bytes(len(data[at : at + size]))
                case 2:
                    data[at : at + size] = rng.randbytes(len(data[at : at + size]))
                case _:
                    other = rng.randrange(len(data) - size)
                    data[at : at + size] = data[other : other + len(data[at : at + size])]
        file = tmp_path / f"{number}" / "chats.db"
        file.parent.mkdir()
        file.write_bytes(data)
        with suppress(StoreError):
            use(file)
            kept += 1
    assert kept > 180


def test_nobody_else_can_read_the_chats(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        path = tmp_path / "ember" / "chats.db"
        store = SessionStore.open(path)
        store.save(Chat(messages=[ChatMessage(role=Role.USER, text="secret")]))
        assert modes(path) == [0o700, 0o600, 0o600, 0o600]
        path.parent.chmod(0o755)
        for suffix in FAMILY:
            path.with_name(path.name + suffix).chmod(0o664)
        SessionStore.open(path)
        assert modes(path) == [0o700, 0o600, 0o600, 0o600]
    finally:
        os.umask(before)


def modes(path: Path) -> list[int]:
    """What may be done with the folder and the files."""
    found = [path.parent, *(path.with_name(path.name + suffix) for suffix in FAMILY)]
    return [stat.S_IMODE(each.stat().st_mode) for each in found]


def test_a_mended_file_is_private_too(path: Path) -> None:
    path.write_bytes(b"nothing")
    path.chmod(0o644)
    store = SessionStore.open(path)
    store.chats()
    assert modes(path) == [0o700, 0o600, 0o600, 0o600]
    assert stat.S_IMODE(path.with_name("chats.db.damaged-1").stat().st_mode) == 0o600
