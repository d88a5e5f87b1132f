"""Chats on disk."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from app.sessions.chat import Attachment, Chat, ChatMessage, Figures, State, title_of
from app.sessions.schema import StoreError
from app.sessions.store import SessionStore
from models.chat_template import Role

FIGURES = Figures(
    model="m",
    tokens=7,
    prompt_tokens=31,
    reused_tokens=5,
    finish_reason="stop",
    ttft_s=0.5,
    prefill_tps=100.0,
    decode_tps=42.0,
)


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    return SessionStore.open(tmp_path / "deep" / "chats.db")


def saved(store: SessionStore, *texts: str, title: str = "t") -> Chat:
    """A chat of alternating questions and answers."""
    chat = Chat(title=title, model="m", system="be kind")
    for at, text in enumerate(texts):
        role = Role.ASSISTANT if at % 2 else Role.USER
        chat.messages.append(ChatMessage(role=role, text=text))
        store.save(chat, chat.messages[-1])
    return chat


def test_a_chat_comes_back_as_it_was(store: SessionStore) -> None:
    chat = saved(store, "hi", "hello 🙂 \x1b[31m")
    chat.messages[0].attachments = (Attachment(name="a.txt", text="one\ntwo"),)
    chat.messages[1].figures = FIGURES
    store.save(chat, chat.messages[0])
    store.save(chat, chat.messages[1])
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


def test_cut_forgets_later_messages(store: SessionStore) -> None:
    chat = saved(store, "a", "b", "c", "d")
    del chat.messages[2:]
    store.cut(chat)
    again = store.latest()
    assert again is not None
    assert [each.text for each in again.messages] == ["a", "b"]


def test_search_finds_titles_and_texts_and_takes_wildcards_literally(store: SessionStore) -> None:
    saved(store, "about the 100% sure thing", title="first")
    saved(store, "something else", title="snake_case")
    assert [each.title for each in store.chats()] == ["snake_case", "first"]
    (hit,) = store.chats("100% SURE")
    assert hit.title == "first"
    assert "100% sure" in hit.snippet
    assert [each.title for each in store.chats("_")] == ["snake_case"]
    assert store.chats("nowhere") == []


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


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="cannot open"):
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
from models.chat_template import Role
store = SessionStore.open(Path({str(path)!r}))
chat = Chat(title="killed", model="m")
for role, text in ((Role.USER, "ask"), (Role.ASSISTANT, "half an ans")):
    chat.messages.append(ChatMessage(role=role, text=text, state=State.STREAMING))
    store.save(chat, chat.messages[-1])
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
