"""Chats on disk."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from app.sessions import schema
from app.sessions.chat import Attachment, Chat, ChatMessage, State, Thought, title_of
from app.sessions.schema import StoreError
from app.sessions.store import SessionStore
from models.text.messages import Role
from tests.app.sessions.samples import FIGURES
from tests.full_disk import full_disk


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    return SessionStore.open(tmp_path / "deep" / "chats.db")


def saved(store: SessionStore, *texts: str, title: str = "t") -> Chat:
    """A chat of alternating questions and answers."""
    chat = Chat(title=title, model="m", system="be kind")
    for at, text in enumerate(texts):
        role = Role.ASSISTANT if at % 2 else Role.USER
        chat.messages.append(ChatMessage(role=role, text=text))
        store.save(chat)
    return chat


def texts(chat: Chat | None) -> list[str]:
    assert chat is not None
    return [each.text for each in chat.messages]


def test_a_chat_comes_back_as_it_was(store: SessionStore) -> None:
    chat = saved(store, "hi", "hello 🙂 \x1b[31m")
    chat.messages[0].attachments = (Attachment(name="a.txt", text="one\ntwo"),)
    chat.messages[1].figures = FIGURES
    store.save(chat)
    again = store.latest()
    assert again is not None
    assert (again.title, again.model, again.system) == ("t", "m", "be kind")
    assert [each.content for each in again.messages] == [each.content for each in chat.messages]
    assert again.messages[1].figures == FIGURES
    assert again.messages[0].attachments == chat.messages[0].attachments


def test_a_lone_surrogate_is_saved_as_a_question_mark(store: SessionStore) -> None:
    saved(store, "a\ud800b")
    chat = store.latest()
    assert chat is not None
    assert chat.messages[0].text == "a?b"


def test_the_file_follows_what_is_added_changed_and_taken_away(store: SessionStore) -> None:
    chat = saved(store, "a", "b", "c", "d")
    del chat.messages[2:]
    chat.messages[0].text = "A"
    chat.messages.append(ChatMessage(role=Role.USER, text="e"))
    store.save(chat)
    assert texts(store.latest()) == ["A", "b", "e"]
    del chat.messages[:]
    store.save(chat)
    assert texts(store.latest()) == []


def test_a_chat_without_words_is_not_kept(store: SessionStore) -> None:
    assert not store.save(Chat(model="m", system="be kind"))
    assert store.chats() == []


def test_what_is_as_it_was_is_not_written(store: SessionStore) -> None:
    saved(store, "a", title="first")
    chat = saved(store, "b", title="second")
    saved(store, "c", title="third")
    before = chat.saved
    chat.model = "another that was loaded"
    store.save(chat)
    assert chat.saved is before
    assert [each.title for each in store.chats()] == ["third", "second", "first"]


def test_memory_and_disk_agree_after_a_failed_commit(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    store = SessionStore.open(path)
    chat = saved(store, "q0", "a0")
    other = Chat(title="other", messages=[ChatMessage(role=Role.USER, text="x")])
    chat.messages.append(ChatMessage(role=Role.USER, text="q1"))
    before = chat.saved
    # A commit fails, after all its statements have gone well.
    with full_disk(path.with_name("chats.db-wal").stat().st_size):
        for each in (chat, other, chat):
            with pytest.raises(StoreError, match="cannot save the chats: "):
                store.save(each)
    assert chat.saved is before
    assert other.id is None
    chat.messages.append(ChatMessage(role=Role.ASSISTANT, text="a1"))
    store.save(other)
    store.save(chat)
    chat.messages[2].text = "q1 changed"
    store.save(chat)
    assert texts(SessionStore.open(path).latest()) == ["q0", "a0", "q1 changed", "a1"]
    assert [each.title for each in store.chats()] == ["t", "other"]


def test_a_locked_file_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    store = SessionStore.open(path)
    chat = Chat(messages=[ChatMessage(role=Role.USER, text="one")])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            store.save(chat)
    chat.messages.append(ChatMessage(role=Role.ASSISTANT, text="two"))
    store.save(chat)
    assert texts(store.latest()) == ["one", "two"]


def in_two_windows(path: Path) -> tuple[SessionStore, Chat, SessionStore, Chat]:
    """A chat of two turns that two programs have open."""
    one, two = SessionStore.open(path), SessionStore.open(path)
    mine = saved(one, "q", "a", "q2", "a2", title="pets")
    yours = two.latest()
    assert yours is not None
    return one, mine, two, yours


def test_two_windows_on_one_chat_keep_all_words_of_both(tmp_path: Path) -> None:
    one, mine, two, yours = in_two_windows(tmp_path / "chats.db")
    mine.messages.append(ChatMessage(role=Role.USER, text="mine"))
    assert not one.save(mine)
    yours.messages.append(ChatMessage(role=Role.USER, text="yours"))
    assert two.save(yours)
    assert mine.id is not None
    assert yours.id not in (None, mine.id)
    assert yours.title == "pets (copy)"
    for window, chat, word in ((one, mine, "mine"), (two, yours, "yours")):
        chat.messages.append(ChatMessage(role=Role.ASSISTANT, text="end"))
        assert not window.save(chat)
        assert chat.id is not None
        assert texts(one.load(chat.id)) == ["q", "a", "q2", "a2", word, "end"]


def test_a_chat_is_one_windows_until_that_closes(tmp_path: Path) -> None:
    one, mine, two, yours = in_two_windows(tmp_path / "chats.db")
    assert mine.id is not None
    assert [one.claim(mine.id), two.claim(mine.id)] == [True, False]
    copy = two.copy(yours)
    assert not two.save(copy)
    assert [copy.id] == [None]  # nothing was said in it
    copy.messages.append(ChatMessage(role=Role.USER, text="more"))
    assert not two.save(copy)
    assert copy.title == "pets (fork)"
    assert copy.id not in (None, mine.id)
    one.close()
    assert two.claim(mine.id)
    assert [each.name for each in (tmp_path / "open").iterdir()] == [
        f"{number}.open" for number in sorted((mine.id, copy.id or 0))
    ]
    two.close()
    assert list((tmp_path / "open").iterdir()) == []


def test_a_claim_goes_with_a_killed_program(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    store = SessionStore.open(path)
    chat = saved(store, "a")
    store.close()
    script = f"""
import sys
from pathlib import Path
from app.sessions.store import SessionStore
store = SessionStore.open(Path({str(path)!r}))
print(store.claim({chat.id}), flush=True)
sys.stdin.read()
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"True\n"
        store = SessionStore.open(path)
        assert chat.id is not None
        assert not store.claim(chat.id)
        other.kill()
        other.wait()
        assert store.claim(chat.id)


@pytest.mark.parametrize("seed", range(8))
def test_two_windows_never_interleave_in_one_chat(tmp_path: Path, seed: int) -> None:
    """Whatever two do to what was one chat, each saved chat is as one of them has it."""
    chance = random.Random(seed)
    one, mine, two, yours = in_two_windows(tmp_path / "chats.db")
    for turn in range(40):
        window, chat = chance.choice(((one, mine), (two, yours)))
        if len(chat.messages) > 3 and chance.random() < 0.3:
            del chat.messages[chance.randrange(3, len(chat.messages)) :]
        chat.messages.append(ChatMessage(role=chance.choice(list(Role)), text=f"{turn}"))
        if chance.random() < 0.7:
            window.save(chat)
    one.save(mine)
    two.save(yours)
    assert mine.id is not None
    assert yours.id is not None
    assert mine.id != yours.id
    for chat in (mine, yours):
        assert chat.id is not None
        assert texts(one.load(chat.id)) == texts(chat)
    with closing(sqlite3.connect(tmp_path / "chats.db")) as file:
        places = file.execute("SELECT chat, position FROM messages").fetchall()
    assert len(set(places)) == len(places)


def test_undo_in_one_window_takes_nothing_from_the_other(tmp_path: Path) -> None:
    one, mine, two, yours = in_two_windows(tmp_path / "chats.db")
    yours.messages.append(ChatMessage(role=Role.USER, text="more"))
    two.save(yours)
    del mine.messages[2:]
    assert one.save(mine)
    assert mine.id is not None
    assert yours.id is not None
    assert texts(one.load(mine.id)) == ["q", "a"]
    assert texts(one.load(yours.id)) == ["q", "a", "q2", "a2", "more"]


def test_a_chat_deleted_elsewhere_is_saved_again_and_no_other_in_its_place(tmp_path: Path) -> None:
    one, mine, two, _ = in_two_windows(tmp_path / "chats.db")
    assert mine.id is not None
    with pytest.raises(StoreError, match="open in another window"):
        two.delete(mine.id)
    one.release(mine.id)  # as on a disk without locks
    two.delete(mine.id)
    stranger = saved(two, "hello", title="stranger")
    assert stranger.id == mine.id  # SQLite gives the number again
    mine.messages.append(ChatMessage(role=Role.USER, text="on"))
    assert one.save(mine)
    assert mine.id is not None
    assert texts(one.load(mine.id)) == ["q", "a", "q2", "a2", "on"]
    assert texts(one.load(stranger.id)) == ["hello"]


def test_a_title_given_elsewhere_stays(tmp_path: Path) -> None:
    one, mine, two, _ = in_two_windows(tmp_path / "chats.db")
    assert mine.id is not None
    two.rename(mine.id, "renamed")
    mine.messages[-1].text = "changed"
    assert not one.save(mine)
    assert [each.title for each in one.chats()] == ["renamed"]


def test_a_clock_set_back_changes_no_order(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = saved(store, "a", title="first")
    monkeypatch.setattr(time, "time", lambda: 77.0)
    second = saved(store, "b", "c", title="second")
    assert [each.title for each in store.chats()] == ["second", "first"]
    assert texts(store.latest()) == ["b", "c"]
    monkeypatch.setattr(time, "time", lambda: 33.0)
    first.messages.append(ChatMessage(role=Role.ASSISTANT, text="d"))
    second.messages[0].text = "B"
    store.save(second)
    store.save(first)
    assert texts(store.latest()) == ["a", "d"]


def test_chats_of_the_first_format_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    with closing(sqlite3.connect(path)) as old, old:
        for statement in schema._FIRST:
            old.execute(statement)
        old.execute("PRAGMA user_version = 1")
        for number, updated in ((1, 30.0), (2, 10.0), (3, 20.0)):
            old.execute(
                "INSERT INTO chats VALUES (?, ?, 'm', '', 5.0, ?)",
                (number, f"chat {number}", updated),
            )
            old.execute(
                "INSERT INTO messages VALUES (?, ?, 0, 'user', 'hi', '[]', 'complete', "
                "NULL, NULL, 5.0)",
                (number, number),
            )
    store = SessionStore.open(path)
    assert store.notes == ()
    assert [each.id for each in store.chats()] == [1, 3, 2]
    assert texts(store.latest()) == ["hi"]


def test_a_file_of_the_ember_before_this_one_is_opened(tmp_path: Path) -> None:
    """Made by the code of then, of format 3: nothing of it is lost, and it can be gone on with."""
    path = tmp_path / "chats.db"
    shutil.copy(Path(__file__).parents[2] / "data" / "chats_format3.db", path)
    store = SessionStore.open(path)
    assert store.notes == ()
    assert [(each.title, each.messages) for each in store.chats()] == [("dogs", 2), ("boats", 4)]
    boats = store.load(1)
    assert (boats.model, boats.system, boats.damaged) == ("smollm2", "be brief", 0)
    assert (boats.left_out, boats.sampling) == (0, {})
    assert texts(boats) == ["why do boats float?", "Because.", "and stones?", "They s"]
    assert boats.messages[0].attachments == (Attachment(name="a.txt", text="one\ntwo"),)
    assert boats.messages[1].figures == FIGURES
    assert boats.messages[1].thought == Thought(text="Hm", tokens=3, seconds=0.5)
    assert boats.messages[3].state is State.STOPPED
    assert store.load(2).messages[1].error == "the disk is gone"
    boats.left_out, boats.sampling = 2, {"temp": 0.7, "top_k": 40}
    assert not store.save(boats)
    store.close()
    again = SessionStore.open(path).load(1)
    assert (again.left_out, again.sampling) == (2, {"temp": 0.7, "top_k": 40})
    assert [each.end for each in again.messages] == [0, 0, None, None]


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("left_out", "-3", (0, {})),
        ("left_out", "'x'", (0, {})),
        ("left_out", "99", (2, {})),
        ("sampling", "'[1]'", (0, {})),
        ("sampling", """'{"temp": "hot", "top_p": 0.5, "min_p": NaN}'""", (0, {"top_p": 0.5})),
    ],
)
def test_settings_of_a_chat_of_any_kind_are_read(
    tmp_path: Path, column: str, value: str, expected: tuple[int, dict[str, float]]
) -> None:
    store = SessionStore.open(tmp_path / "chats.db")
    saved(store, "why?", "so")
    with closing(sqlite3.connect(tmp_path / "chats.db")) as other, other:
        other.execute(f"UPDATE chats SET {column} = {value}")
    found = store.latest()
    assert found is not None
    assert (found.left_out, found.sampling) == expected


def test_chats_from_before_thinking_are_opened(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    with closing(sqlite3.connect(path)) as old, old:
        for statement in (*schema._FIRST, *schema._SECOND):
            old.execute(statement)
        old.execute("PRAGMA user_version = 2")
        old.execute("INSERT INTO chats VALUES (1, 'chat', 'm', '', 5.0, 5.0, 1, 7)")
        old.execute(
            "INSERT INTO messages VALUES (1, 1, 0, 'assistant', 'hi', '[]', 'complete', "
            "NULL, NULL, 5.0)"
        )
    store = SessionStore.open(path)
    assert store.notes == ()
    chat = store.load(1)
    assert (texts(chat), chat.messages[0].thought, chat.damaged) == (["hi"], None, 0)
    thought = Thought(text="so \ud800", tokens=7, seconds=1.5)
    chat.messages[0].thought = thought
    store.save(chat)
    assert store.load(1).messages[0].thought == replace(thought, text="so ?")


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("thinking_tokens", "'x'", Thought(text="Hm", tokens=0, seconds=1.5)),
        ("thinking_tokens", "-3", Thought(text="Hm", tokens=0, seconds=1.5)),
        ("thinking_seconds", "'x'", Thought(text="Hm", tokens=7, seconds=0.0)),
        ("thinking", "x'486d'", Thought(text="Hm", tokens=7, seconds=1.5)),
        ("thinking", "''", None),
    ],
)
def test_thinking_of_any_kind_is_read(
    tmp_path: Path, column: str, value: str, expected: Thought | None
) -> None:
    store = SessionStore.open(tmp_path / "chats.db")
    chat = saved(store, "why?", "so")
    chat.messages[1].thought = Thought(text="Hm", tokens=7, seconds=1.5)
    store.save(chat)
    with closing(sqlite3.connect(tmp_path / "chats.db")) as other, other:
        other.execute(f"UPDATE messages SET {column} = {value} WHERE position = 1")
    found = store.latest()
    assert found is not None
    assert found.messages[1].thought == expected
    assert found.damaged == (value == "x'486d'")


def test_what_was_thought_is_found(store: SessionStore) -> None:
    chat = saved(store, "why?", "so", title="t")
    chat.messages[1].thought = Thought(text="Let me see: 42%", tokens=7, seconds=1.5)
    store.save(chat)
    (hit,) = store.chats("SEE: 42%")
    assert "see: 42%" in hit.snippet
    assert store.chats("43") == []


def test_programs_that_start_at_once_make_one_file(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    script = f"""
from pathlib import Path
from app.sessions.chat import Chat, ChatMessage
from app.sessions.store import SessionStore
from models.text.messages import Role
from tests.app.sessions.samples import FIGURES
store = SessionStore.open(Path({str(path)!r}))
store.wait()
store.save(Chat(messages=[ChatMessage(role=Role.USER, text="hi")]))
assert not store.notes, store.notes
"""
    programs = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(4)]
    assert [each.wait() for each in programs] == [0] * 4
    assert len(SessionStore.open(path).chats()) == 4


def test_a_search_for_more_than_sqlite_compares_finds_nothing(store: SessionStore) -> None:
    store.save(Chat(title="boats", messages=[ChatMessage(role=Role.USER, text="hi")]))
    assert store.chats("x" * 120_000) == []


def test_search_finds_titles_and_texts_and_takes_wildcards_literally(store: SessionStore) -> None:
    saved(store, "about the 100% sure thing", title="first")
    saved(store, "something else", title="snake_case")
    assert [each.title for each in store.chats()] == ["snake_case", "first"]
    (hit,) = store.chats("100% SURE")
    assert hit.title == "first"
    assert "100% sure" in hit.snippet
    assert [each.title for each in store.chats("_")] == ["snake_case"]
    assert store.chats("nowhere") == []


def test_a_deleted_chat_is_nowhere_on_disk(tmp_path: Path) -> None:
    said = "a word that nobody is to read"
    with closing(SessionStore.open(tmp_path / "chats.db")) as store:
        chat = saved(store, said, said * 2000)
        saved(store, "another chat")
        assert chat.id is not None
        store.delete(chat.id)
        left = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert all(said.encode() not in path.read_bytes() for path in left)
        assert [each.title for each in store.chats()] == ["t"]


def test_rename_and_delete(store: SessionStore) -> None:
    first, second = saved(store, "a", title="one"), saved(store, "b", title="two")
    assert first.id is not None
    assert second.id is not None
    store.rename(first.id, "renamed")
    store.delete(second.id)
    assert [(each.title, each.messages) for each in store.chats()] == [("renamed", 1)]
    with pytest.raises(StoreError, match="no chat number"):
        store.load(second.id)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    SessionStore.open(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="newer ember"):
        SessionStore.open(path)


def test_two_programs_share_the_file(tmp_path: Path) -> None:
    one, two = (SessionStore.open(tmp_path / "chats.db") for _ in range(2))
    saved(one, "a", title="from one")
    saved(two, "b", title="from two")
    assert {each.title for each in one.chats()} == {"from one", "from two"}


def test_what_was_saved_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    script = f"""
import os, signal
from pathlib import Path
from app.sessions.chat import Chat, ChatMessage, State
from app.sessions.store import SessionStore
from models.text.messages import Role
from tests.app.sessions.samples import FIGURES
store = SessionStore.open(Path({str(path)!r}))
chat = Chat(title="killed", model="m")
for role, text in ((Role.USER, "ask"), (Role.ASSISTANT, "half an ans")):
    chat.messages.append(ChatMessage(role=role, text=text, state=State.STREAMING))
    store.save(chat)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    chat = SessionStore.open(path).latest()
    assert chat is not None
    assert chat.messages[1].text == "half an ans"
    assert chat.messages[1].state is State.STOPPED


def test_a_title_is_the_first_line_shortened() -> None:
    long = "why   is\nthe sky " + "very " * 20 + "blue?"
    title = title_of([ChatMessage(role=Role.USER, text=long)])
    assert title.startswith("why is the sky very")
    assert len(title) <= 48
    assert title.endswith("…")
