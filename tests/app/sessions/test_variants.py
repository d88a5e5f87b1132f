"""Variants of messages: taken apart and joined, on disk, in copies and in files."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from app.sessions.chat import Chat, ChatMessage, State
from app.sessions.export import as_json, as_markdown, from_json
from app.sessions.store import SessionStore
from app.sessions.undone import Undone
from app.sessions.variants import joined, places
from kvcache.errors import EmberError
from models.text.messages import Role


def message(text: str) -> ChatMessage:
    """A question, or an answer where the text begins with "a"."""
    return ChatMessage(role=Role.ASSISTANT if text[0] in "aA" else Role.USER, text=text)


def said(*texts: str, title: str = "t") -> Chat:
    return Chat(title=title, messages=[message(each) for each in texts])


def shown(chat: Chat | None) -> list[str]:
    """What is shown; behind a message that has others, which of how many it is."""
    assert chat is not None
    return [f"{each.text}{_number(each)}" for each in chat.messages]


def _number(each: ChatMessage) -> str:
    return f" {each.variants.number(each) + 1}/{len(each.variants)}" if each.variants else ""


def branched() -> Chat:
    """A chat with variants of an answer, of a question, and of an answer in a line aside."""
    chat = said("q1", "a1", "q2", "a2")
    chat.say(message("a2b"), chat.messages[3])
    chat.say(message("q3"))
    chat.say(message("Q1"), chat.messages[0])
    chat.say(message("A1"))
    chat.say(message("A1b"), chat.messages[1])
    return chat


def everything(chat: Chat) -> list[object]:
    """All lines of a chat, as what can be compared with another's."""
    found = places(chat.messages)
    order = {each.message: at for at, each in enumerate(found)}
    return [
        (each.message.text, each.way, each.number, each.follows and order[each.follows])
        for each in found
    ]


def test_a_variant_brings_back_what_was_said_after_it() -> None:
    chat = branched()
    assert shown(chat) == ["Q1 2/2", "A1b 2/2"]
    first = chat.choose(chat.messages[0], 0)
    assert first.text == "q1"
    assert shown(chat) == ["q1 1/2", "a1", "q2", "a2b 2/2", "q3"]
    chat.choose(chat.messages[3], 0)
    assert shown(chat) == ["q1 1/2", "a1", "q2", "a2 1/2"]
    chat.choose(chat.messages[0], 1)
    assert shown(chat) == ["Q1 2/2", "A1b 2/2"]
    chat.choose(chat.messages[0], 0)
    chat.choose(chat.messages[3], 1)
    assert shown(chat) == ["q1 1/2", "a1", "q2", "a2b 2/2", "q3"]


def test_what_is_taken_apart_is_joined_as_it_was() -> None:
    chat = branched()
    before = everything(chat)
    chat.restore(places(chat.messages))
    assert everything(chat) == before
    assert chat.copy().messages[0] is not chat.messages[0]
    assert everything(chat.copy()) == before
    assert joined([]) == []


def test_a_variant_that_is_withdrawn_leaves_the_others() -> None:
    chat = said("q1", "a1")
    chat.say(message("a2"), chat.messages[1])
    chat.say(message("a3"), chat.messages[1])
    former = chat.choose(chat.messages[1], 0)
    chat.say(message("a4"), former)
    chat.withdraw(chat.messages[1], former)
    assert shown(chat) == ["q1", "a1 1/3"]
    chat.withdraw(chat.messages[1])
    assert shown(chat) == ["q1", "a2 1/2"]
    chat.withdraw(chat.messages[0])
    assert shown(chat) == []


def test_what_was_taken_back_is_had_again_step_by_step() -> None:
    chat, undone = branched(), Undone()
    whole = everything(chat)
    assert undone.take_back(chat).text == "Q1"
    assert shown(chat) == ["q1 1/1", "a1", "q2", "a2b 2/2", "q3"]
    one_less = everything(chat)
    for question in ("q3", "q2", "q1"):
        assert undone.take_back(chat).text == question
    with pytest.raises(EmberError, match="nothing to take back"):
        undone.take_back(chat)
    assert chat.messages == []
    for _ in range(3):
        undone.bring_back(chat)
    assert everything(chat) == one_less
    # Another variant that was looked at meanwhile is not in the way.
    chat.choose(chat.messages[3], 0)
    undone.bring_back(chat)
    assert everything(chat) == whole
    undone.take_back(chat)
    undone.forget()
    with pytest.raises(EmberError, match="nothing to bring back"):
        undone.bring_back(chat)


def test_messages_that_are_not_read_are_counted_anew_where_others_are_shown() -> None:
    chat = said("q1", "a1", "q2", "a2", "q3", "a3")
    chat.left_out = 4
    for at, each in enumerate(chat.messages):
        each.end = max(at - 3, 0)
    chat.say(message("a3b"), chat.messages[5])
    assert (chat.left_out, [each.end for each in chat.messages[:4]]) == (4, [0] * 4)
    chat.say(message("a1b"), chat.messages[1])
    assert (chat.left_out, [each.end for each in chat.messages]) == (0, [None] * 2)


def test_variants_come_back_from_disk(tmp_path: Path) -> None:
    store, chat = SessionStore.open(tmp_path / "chats.db"), branched()
    store.save(chat)
    again = SessionStore.open(tmp_path / "chats.db").latest()
    assert again is not None
    assert everything(again) == everything(chat)
    # What was shown of lines aside is known too, and the second window saves nothing.
    saved = again.saved
    store.save(again)
    assert again.saved is saved
    for each in (chat, again):
        each.choose(each.messages[0], 0)
        each.choose(each.messages[3], 0)
    assert shown(again) == ["q1 1/2", "a1", "q2", "a2 1/2"]
    store.save(chat)
    assert shown(store.latest()) == shown(again)
    assert [each.messages for each in store.chats()] == [4]
    assert [each.title for each in store.chats("A1b")] == ["t"]


def test_two_windows_keep_the_variants_of_both(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    one, two, mine = SessionStore.open(path), SessionStore.open(path), branched()
    one.save(mine)
    yours = two.latest()
    assert yours is not None
    mine.choose(mine.messages[0], 0)
    one.save(mine)
    yours.say(message("yours"))
    assert two.save(yours)
    assert mine.id is not None
    assert yours.id is not None
    for chat in (mine, yours):
        assert chat.id is not None
        assert everything(one.load(chat.id)) == everything(chat)


def test_a_copy_is_saved_once_its_title_is_given(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    one, two = SessionStore.open(path), SessionStore.open(path)
    one.save(branched())
    theirs = two.latest()
    assert theirs is not None
    for change in ("title", "system"):
        copy = two.copy(theirs)
        two.save(copy)
        assert [copy.id] == [None]
        setattr(copy, change, "mine")
        two.save(copy)
        assert copy.id is not None
        assert getattr(two.load(copy.id), change) == "mine"


@pytest.mark.parametrize(
    "change",
    [
        "follows = 9999",
        "follows = 'x'",
        "follows = id",
        "number = 'x'",
        "number = -3",
        "aside = 'x'",
        "aside = 7",
        "aside = 2",
        "position = -1",
        "position = 'x'",
    ],
)
@pytest.mark.parametrize("which", ["aside > 0", "aside = 0", "1"])
def test_no_message_is_lost_with_its_place(tmp_path: Path, change: str, which: str) -> None:
    store, chat = SessionStore.open(tmp_path / "chats.db"), branched()
    store.save(chat)
    with closing(sqlite3.connect(tmp_path / "chats.db")) as other, other:
        other.execute(f"UPDATE messages SET {change} WHERE {which}")
    found = store.latest()
    assert found is not None
    assert shown(found) != []
    assert {each.message.text for each in places(found.messages)} == {
        each.message.text for each in places(chat.messages)
    }
    found.say(message("q9"))
    store.save(found)
    assert everything(store.load(found.id or 0)) == everything(found)


@pytest.mark.parametrize("lost", range(10))
def test_what_followed_a_lost_message_stays(tmp_path: Path, lost: int) -> None:
    store, chat = SessionStore.open(tmp_path / "chats.db"), branched()
    store.save(chat)
    with closing(sqlite3.connect(tmp_path / "chats.db")) as other, other:
        other.execute("DELETE FROM messages WHERE id = ?", (lost,))
    found = store.latest()
    assert found is not None
    kept = [each.message.text for each in places(found.messages)]
    assert len(set(kept)) == len(kept) == len(places(chat.messages)) - bool(lost)


def test_a_chat_of_the_format_before_gets_variants(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    shutil.copy(Path(__file__).parents[2] / "data" / "chats_format4.db", path)
    store = SessionStore.open(path)
    assert store.notes == ()
    boats = store.load(1)
    assert (boats.left_out, boats.sampling, boats.damaged) == (2, {"temp": 0.7}, 0)
    assert shown(boats) == ["why do boats float?", "Because.", "and stones?", "They s"]
    boats.say(message("a better one"), boats.messages[3])
    boats.say(message("Why?"), boats.messages[0])
    store.save(boats)
    again = SessionStore.open(path).load(1)
    assert everything(again) == everything(boats)
    again.choose(again.messages[0], 0)
    assert shown(again)[2:] == ["and stones?", "a better one 2/2"]


def test_a_retry_that_is_killed_leaves_the_answer_before(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    script = f"""
import os, signal
from pathlib import Path
from app.sessions.chat import ChatMessage, State
from app.sessions.store import SessionStore
from models.text.messages import Role
from tests.app.sessions.test_variants import branched
store, chat = SessionStore.open(Path({str(path)!r})), branched()
store.save(chat)
new = ChatMessage(role=Role.ASSISTANT, text="", state=State.STREAMING)
chat.say(new, chat.choose(chat.messages[1], 0))
store.save(chat)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    store = SessionStore.open(path)
    chat = store.latest()
    assert shown(chat) == ["Q1 2/2", "A1b 2/2"]
    assert chat is not None
    store.save(chat)
    assert everything(store.load(chat.id or 0)) == everything(branched())


def test_an_exported_chat_has_its_variants() -> None:
    chat = branched()
    chat.messages[1].state = State.STOPPED
    assert everything(from_json(as_json(chat))) == everything(chat)
    assert from_json(as_json(chat)).messages[1].state is State.STOPPED
    plain = said("q1", "a1")
    assert everything(from_json(as_json(plain))) == everything(plain)
    folds = [each.content for each in MarkdownIt().parse(as_markdown(chat)) if "<d" in each.content]
    assert folds == [
        f"<details>\n<summary>Message {number}, variant 1 of 2</summary>\n" for number in (1, 2, 4)
    ]
    assert "> **Model:**\n>\n> a2b" in as_markdown(chat)
    assert "<details>" not in as_markdown(plain)


@pytest.mark.parametrize(
    "aside", ['[{"after": 9, "messages": []}]', '[{"after": 0}]', "[7]", '[{"messages": []}]']
)
def test_a_line_that_belongs_nowhere_is_refused(aside: str) -> None:
    text = '{"schema": 1, "messages": [{"role": "user", "text": "q"}], "aside": ASIDE}'
    with pytest.raises(EmberError, match="line 1 aside has no place"):
        from_json(text.replace("ASIDE", aside))
