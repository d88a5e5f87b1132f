"""The chat without a screen, by its pipe: what its commands do, and what is saved."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.sessions.chat import Chat, State
from app.sessions.store import SessionStore, default_path
from tests.app.conftest import Ember, Result
from tests.scripted_model import write_scripted

ANSWER = "Boats float. "
Say = Callable[..., Result]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says ANSWER."""
    path = tmp_path_factory.mktemp("models") / "says.gguf"
    write_scripted(path, [b"Boats", b" float", b". "], context=128)
    return path


@pytest.fixture
def say(ember: Ember, model: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Pipes lines into a chat with flags."""

    def piped(*lines: str, flags: tuple[object, ...] = ()) -> Result:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return ember("chat", "-m", model, "--backend", "reference", *flags)

    return piped


def saved(number: int) -> Chat:
    store = SessionStore.open(default_path())
    chat = store.load(number)
    store.close()
    return chat


def test_what_is_piped_in_is_answered_line_by_line(say: Say) -> None:
    result = say("why?", "how?")
    assert result.code == 0
    assert result.out.count(f"> {ANSWER}\n") == 2
    assert result.err.count(" tok/s · answer 4 tokens") == 2
    assert "\x1b" not in result.out + result.err


def test_a_prompt_after_the_command_is_the_first_message(say: Say) -> None:
    result = say("how?", flags=("why is", "it?", "--continue"))
    assert result.out.count(ANSWER) == 2
    assert [each.text for each in saved(1).messages][::2] == ["why is it?", "how?"]


def test_what_is_piped_in_is_saved_where_a_chat_goes_on(say: Say) -> None:
    say("why?")
    assert not default_path().exists()
    first = say("why?", flags=("--continue",))
    assert "there is no saved chat yet" in first.err
    assert "`ember chats resume 1` goes on with “why?”" in first.err
    second = say("how?", flags=("--resume", 1))
    assert "“why?”, 2 messages; the last:\n> why?\nBoats float." in second.out
    assert [each.text for each in saved(1).messages] == ["why?", ANSWER, "how?", ANSWER]
    assert all(each.state is State.COMPLETE for each in saved(1).messages)
    assert saved(1).messages[1].figures is not None
    missing = say("why?", flags=("--resume", 7))
    assert (missing.code, "no chat number 7" in missing.error_line()) == (1, True)


def test_a_chat_that_another_window_has_becomes_a_copy(say: Say) -> None:
    say("why?", flags=("--continue",))
    store = SessionStore.open(default_path())
    assert store.claim(1)
    result = say("how?", flags=("--resume", 1))
    store.close()
    assert "this chat is open in another window" in result.err
    assert len(saved(1).messages) == 2
    assert [each.text for each in saved(2).messages] == ["why?", ANSWER, "how?", ANSWER]


def test_undo_retry_and_continue(say: Say) -> None:
    say("why?", "how?", "/undo", "/retry", "/continue", flags=("--continue",))
    question, answer = saved(1).messages
    assert (question.text, answer.text.count(ANSWER)) == ("why?", 1)
    result = say("/undo", "/retry", "/continue")
    assert "nothing to take back" in result.err
    assert "nothing to answer again" in result.err
    assert "no answer to go on with" in result.err


def test_a_system_prompt_and_a_title_are_the_chats(say: Say) -> None:
    asked = ("/system be brief", "/title On boats", "why?", "/system")
    result = say(*asked, flags=("--continue",))
    assert result.out.count("system prompt: be brief\n") == 2
    assert (saved(1).system, saved(1).title) == ("be brief", "On boats")
    assert "system prompt: none" in say("/system clear", flags=("--resume", 1)).out
    assert saved(1).system == ""


def test_new_begins_another_chat(say: Say) -> None:
    say("why?", "/new", "how?", "/reset", "when?", flags=("--continue",))
    assert [[each.text for each in saved(number).messages] for number in (1, 2, 3)] == [
        ["why?", ANSWER],
        ["how?", ANSWER],
        ["when?", ANSWER],
    ]


def test_export_writes_a_new_file(
    say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = say("/export", "why?", "/export", "/export", "/export a.json", "/export a.json")
    assert "nothing to export yet" in result.err
    assert "a.json exists already" in result.err
    assert (tmp_path / "why.md").read_text() == (tmp_path / "why-2.md").read_text()
    assert len(json.loads((tmp_path / "a.json").read_text())["messages"]) == 2


def test_help_names_every_command_and_a_wrong_one_is_told(say: Say) -> None:
    result = say("/help", "/helpless", "/quit", "never read")
    assert all(f"/{name}" in result.out for name in ("new", "retry", "undo", "export", "quit"))
    assert "no command /helpless: /help lists them" in result.err
    assert ANSWER not in result.out


def test_a_message_that_is_too_long_is_taken_back(say: Say) -> None:
    result = say("why? " * 60, "why?", flags=("--continue",))
    assert result.code == 1
    assert "but the window holds " in result.err
    assert [each.text for each in saved(1).messages] == ["why?", ANSWER]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("caf\udce9", r"got 'caf\xe9', expected text in UTF-8"),
        ("a\0b", r"got 'a\x00b', expected text without zero bytes"),
        ("/helpless", "no command /helpless"),
        ("@/no/such/file", "cannot read /no/such/file"),
    ],
)
def test_a_script_hears_of_what_was_not_answered(line: str, told: str, say: Say) -> None:
    result = say(line, "why?")
    assert result.code == 1
    assert result.out.count(ANSWER) == 1
    assert told in result.err


def test_files_that_are_mentioned_go_along(
    say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    result = say("what is @b.txt", "what is @a.txt", flags=("--continue",))
    assert "b.txt is no text file" in result.err
    assert [each.text for each in saved(1).messages[0].attachments] == ["one"]
