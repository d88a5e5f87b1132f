"""`ember chats`: what is saved, from the command line."""

import json
from dataclasses import replace
from pathlib import Path
from signal import SIGINT, SIGTERM

import pytest

from app.sessions.chat import Attachment, Chat, ChatMessage, State, Thought
from app.sessions.export import as_json, from_json
from app.sessions.store import SessionStore, default_path
from kvcache import EmberError
from models.text.messages import Role
from tests.app.conftest import Ember
from tests.app.sessions.samples import FIGURES
from tests.app.terminal import QUIT, Terminal

BACKEND = ("--backend", "reference")


def boats() -> Chat:
    """A chat with all that one can have."""
    question = ChatMessage(
        role=Role.USER,
        text="why do boats float?",
        attachments=(Attachment(name="a.txt", text="one\ntwo"),),
    )
    answer = ChatMessage(
        role=Role.ASSISTANT,
        text="Because 🙂.",
        figures=FIGURES,
        thought=Thought(text="Hm", tokens=3, seconds=0.5),
        state=State.STOPPED,
    )
    return Chat(
        title="boats",
        model="smollm2",
        system="be brief",
        sampling={"temp": 0.7, "top_k": 40},
        messages=[question, answer],
    )


@pytest.fixture
def kept(home: Path) -> int:
    """Two saved chats; the number of that about boats."""
    store = SessionStore.open(default_path())
    chat = boats()
    store.save(chat)
    store.save(Chat(title="dogs", messages=[ChatMessage(role=Role.USER, text="hi \x1b[31m")]))
    store.close()
    assert chat.id is not None
    return chat.id


def test_chats_are_listed_and_searched(ember: Ember, kept: int) -> None:
    for command in (["chats"], ["chats", "list"]):
        lines = ember(*command).out.splitlines()
        assert [line.split()[5] for line in lines] == ["dogs", "boats"]
        assert lines[1].endswith("boats  (SmolLM2 135M Instruct · Q4_1)")
    assert f"{kept:>5}  " in lines[1]
    assert "2 messages" in lines[1]
    lines = ember("chats", "search", "FLOAT").out.splitlines()
    assert len(lines) == 2
    assert "why do boats float?" in lines[1]
    assert ember("chats", "search", "nowhere").out == "no chat has that\n"
    found = json.loads(ember("chats", "list", "--json").out)["chats"]
    assert [(each["id"], each["title"], each["messages"]) for each in found][1] == (
        kept,
        "boats",
        2,
    )
    assert "\x1b" not in ember("chats", "search", "hi").out


def test_a_title_is_shown_in_a_line(ember: Ember, home: Path) -> None:
    store = SessionStore.open(default_path())
    store.save(Chat(title="x\n" * 5000, messages=[ChatMessage(role=Role.USER, text="hi")]))
    store.close()
    (line,) = ember("chats").out.splitlines()
    assert "x x x" in line
    assert len(line) < 200


def test_a_chat_is_exported_and_imported(ember: Ember, kept: int, tmp_path: Path) -> None:
    said = ember("chats", "export", str(kept)).out
    assert said.startswith("# boats\n")
    assert "## You\n\na.txt:" in said
    file = tmp_path / "boats.json"
    assert ember("chats", "export", str(kept), str(file)).out == f"written to {file}\n"
    assert ember("chats", "export", str(kept), "--json").out == file.read_text()
    refused = ember("chats", "export", str(kept), str(file))
    assert (refused.code, "exists already" in refused.error_line()) == (1, True)
    said = ember("chats", "import", str(file)).out
    number = int(said.split()[3].rstrip(":"))
    assert number != kept
    assert ember("chats", "export", str(number), "--json").out == file.read_text()
    missing = ember("chats", "export", "99")
    assert (missing.code, "no chat number 99" in missing.error_line()) == (1, True)


def test_an_exported_chat_is_what_it_was() -> None:
    chat = boats()
    again = from_json(as_json(chat))
    assert (again.title, again.model, again.context) == (chat.title, chat.model, chat.context)
    for mine, yours in zip(chat.messages, again.messages, strict=True):
        assert replace(mine).__dict__ == replace(yours).__dict__


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no JSON"),
        ("[" * 99_999, "no JSON"),
        ("[]", "no chat that ember exported"),
        ('{"schema": 2, "messages": []}', "no chat that ember exported"),
        ('{"schema": 1}', "no messages"),
        ('{"schema": 1, "title": 7, "messages": []}', "no messages, or its title is no text"),
        ('{"schema": 1, "messages": [7]}', "message 1 has no role"),
        ('{"schema": 1, "messages": [{"role": "wizard", "text": "a"}]}', "message 1 has no role"),
        ('{"schema": 1, "messages": [{"role": "user", "text": 7}]}', "message 1 has no text"),
    ],
)
def test_what_is_no_exported_chat_is_refused(text: str, said: str) -> None:
    with pytest.raises(EmberError, match=said):
        from_json(text)


def test_odd_fields_of_an_exported_chat_are_left_out() -> None:
    found = {
        "schema": 1,
        "sampling": {"temp": "hot", "top_p": 0.5},
        "messages": [{"role": "user", "text": "a\ud800", "figures": 7, "attachments": {}}],
    }
    chat = from_json(json.dumps(found))
    assert chat.sampling == {"top_p": 0.5}
    assert (chat.messages[0].text, chat.messages[0].figures) == ("a?", None)


def test_a_chat_is_resumed_by_its_number_which_is_told_on_leaving(
    tiny_path: Path, tmp_path: Path, folders: dict[str, str]
) -> None:
    file = tmp_path / "boats.json"
    file.write_text(as_json(boats()))
    done = Terminal("chats", "import", str(file), environment=folders)
    done.wait_for("imported as chat 1")
    assert done.close() == 0
    by_number, by_flag = ("chats", "resume", "1"), ("chat", "--resume", "1")
    for command, number in ((by_number, 0), (by_flag, 0), (by_flag, SIGTERM), (by_flag, SIGINT)):
        terminal = Terminal(*command, "-m", str(tiny_path), *BACKEND, environment=folders)
        terminal.wait_for("why do boats float?")
        terminal.wait_for("tok/s")
        if number:
            terminal.process.send_signal(number)
        else:
            terminal.type(QUIT)
        assert terminal.close() == (number and 128 + number)
        assert "`ember chats resume 1` goes on with “boats”" in terminal.shown
    missing = Terminal("chats", "resume", "7", *BACKEND, environment=folders)
    missing.wait_for("there is no chat number 7")
    assert missing.close() == 1
