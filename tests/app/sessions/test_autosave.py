"""Chats kept on disk, also when the disk fails meanwhile."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from app.sessions.autosave import Autosave
from app.sessions.chat import Chat, ChatMessage
from app.sessions.store import SessionStore
from models.text.messages import Role


class Saving:
    """An autosave with its clock, and a chat."""

    def __init__(self, path: Path) -> None:
        self.path, self.now, self.told = path, 100.0, list[str]()
        self.store = SessionStore.open(path)
        self.autosave = Autosave(self.store, self.told.append, lambda: self.now)
        self.chat = Chat(model="m")

    def say(self, *texts: str) -> None:
        """Messages, each saved as it comes."""
        for text in texts:
            self.chat.messages.append(ChatMessage(role=Role.USER, text=text))
            self.autosave.save(self.chat)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Another program keeps on writing."""
        with closing(sqlite3.connect(self.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield

    @property
    def saved(self) -> list[list[str]]:
        """The texts of all chats on disk, the last used first."""
        with closing(SessionStore.open(self.path)) as store:
            chats = [store.load(each.id) for each in store.chats()]
        return [[each.text for each in chat.messages] for chat in chats]


@pytest.fixture
def saving(tmp_path: Path) -> Saving:
    return Saving(tmp_path / "chats.db")


def test_a_turn_whose_save_failed_is_saved_with_the_next(saving: Saving) -> None:
    with saving.locked():
        saving.say("one", "two")
    saving.say("three", "four")
    assert saving.saved == [["one", "two", "three", "four"]]
    failed, again = saving.told
    assert failed == (
        "cannot save the chats: another program has locked their file: end it, or wait for it; "
        "this chat is not saved until then"
    )
    assert again == "the chat is saved again"


def test_what_failed_is_tried_again_in_time(saving: Saving) -> None:
    with saving.locked():
        saving.say("one")
        saving.now += 6
        saving.autosave.retry_if_due(saving.chat)
    assert len(saving.told) == 1
    saving.now += 4
    saving.autosave.retry_if_due(saving.chat)
    assert saving.saved == []
    saving.now += 2
    saving.autosave.retry_if_due(saving.chat)
    assert saving.saved == [["one"]]
    assert saving.told[1:] == ["the chat is saved again"]


def test_a_chat_that_was_left_unsaved_is_not_forgotten(saving: Saving) -> None:
    with saving.locked():
        saving.say("one", "two")
        saving.chat = Chat(model="m")
        saving.say("another")
    saving.now += 6
    saving.autosave.retry_if_due(saving.chat)
    assert saving.saved == [["another"], ["one", "two"]]


def test_a_deleted_chat_does_not_come_back(saving: Saving) -> None:
    saving.say("one")
    left = saving.chat
    with saving.locked():
        saving.say("two")
        saving.chat = Chat(model="m")
    assert left.id is not None
    saving.store.delete(left.id)
    saving.autosave.forget(left.id)
    saving.say("another")
    assert saving.saved == [["another"]]


def test_the_last_save_takes_what_failed_before(saving: Saving) -> None:
    with saving.locked():
        saving.say("one")
    assert saving.autosave.finish(saving.chat) is None
    assert saving.saved == [["one"]]


def test_the_last_save_says_why_it_failed(saving: Saving) -> None:
    saving.say("one")
    saving.store.close()
    saving.chat.messages[0].text = "changed"
    assert "closed database" in str(saving.autosave.finish(saving.chat))


def test_a_chat_that_another_window_has_changed_becomes_a_copy_in_one_line(saving: Saving) -> None:
    saving.say("one")
    with closing(SessionStore.open(saving.path)) as other:
        theirs = other.latest()
        assert theirs is not None
        theirs.messages.append(ChatMessage(role=Role.USER, text="theirs"))
        other.save(theirs)
    saving.say("mine", "again")
    assert saving.saved == [["one", "mine", "again"], ["one", "theirs"]]
    (line,) = saving.told
    assert "changed or deleted in another window" in line
    assert "(copy)" in line
