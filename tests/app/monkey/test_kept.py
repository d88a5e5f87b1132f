"""The monkey finds what must not be."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from app.sessions.chat import Chat, ChatMessage
from app.sessions.store import SessionStore
from models.text.messages import Role
from tests.app.monkey.kept import FaultError, Kept, require_sound


def asked(*words: str) -> Chat:
    """A chat of questions and answers; each question ends with a word on a line of its own."""
    chat = Chat(title="chat")
    for word in words:
        chat.messages.append(ChatMessage(role=Role.USER, text=f"pasted\n{word}"))
        chat.messages.append(ChatMessage(role=Role.ASSISTANT, text=word))
    return chat


def saved(path: Path, chat: Chat) -> SessionStore:
    """A store that holds it."""
    store = SessionStore.open(path)
    store.save(chat)
    return store


def test_words_that_are_taken_back_have_vanished_once(tmp_path: Path) -> None:
    chat = asked("a000", "a001", "b000")
    store = saved(tmp_path / "chats.db", chat)
    kept = Kept(tmp_path / "chats.db", "a")
    kept.look()
    assert kept.has("a001")
    assert not kept.has("a002")
    del chat.messages[2:4]
    store.save(chat)
    assert kept.vanished() == ["a001"]
    assert kept.vanished() == []
    chat.messages.clear()
    store.save(chat)
    with pytest.raises(FaultError, match="a000"):
        kept.require()
    store.close()


def test_one_question_may_replace_another(tmp_path: Path) -> None:
    chat = asked("a000", "a001")
    store = saved(tmp_path / "chats.db", chat)
    kept = Kept(tmp_path / "chats.db", "a")
    kept.look()
    with kept.replacing():
        chat.messages[2:] = asked("a002").messages
        store.save(chat)
    assert kept.vanished() == []
    chat.messages[:] = asked("a003").messages
    with pytest.raises(FaultError, match=r"a000.*a002"), kept.replacing():
        store.save(chat)
    store.close()


def test_messages_out_of_order_are_found(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    saved(path, asked("a000", "a001")).close()
    require_sound(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE messages SET position = 1 WHERE position = 2")
    with pytest.raises(FaultError, match=r"\[0, 1, 1, 3\]"):
        require_sound(path)
