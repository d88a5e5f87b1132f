"""The line editor of the chat without a screen, on a terminal."""

from collections.abc import Callable
from pathlib import Path
from signal import SIGTERM

import pytest

from app.sessions.chat import State
from app.sessions.store import SessionStore
from tests.app.terminal import END, INTERRUPT, READS_LINE, Terminal
from tests.scripted_model import write_scripted

ENTER, ALT_ENTER, UP, TAB = b"\r", b"\x1b\r", b"\x1b[A", b"\t"
PASTE = b"\x1b[200~%b\x1b[201~"
HINT = "Ctrl-D ends the chat"
Open = Callable[..., Terminal]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Counts to five."""
    path = tmp_path_factory.mktemp("models") / "says.gguf"
    write_scripted(path, [b"one ", b"two ", b"three ", b"four ", b"five"], context=4096)
    return path


@pytest.fixture
def open_chat(model: Path, folders: dict[str, str]) -> Open:
    """A chat with flags that waits for its first message."""

    def opened(*flags: str, **environment: str) -> Terminal:
        command = ("chat", "--plain", "-m", str(model), "--backend", "reference", *flags)
        terminal = Terminal(*command, environment=folders | environment)
        terminal.wait_for(READS_LINE)
        return terminal

    return opened


def left(terminal: Terminal, keys: bytes = END) -> None:
    """End the chat as a user does; all is as it was."""
    terminal.type(keys)
    terminal.wait_until(lambda: terminal.is_cooked and terminal.process.poll() is not None)
    assert terminal.close() == 0
    assert "Traceback" not in terminal.shown


def questions(folders: dict[str, str], number: int = 1) -> list[str]:
    """What was asked in a chat, all of it answered."""
    store = SessionStore.open(Path(folders["XDG_DATA_HOME"]) / "ember" / "chats.db")
    messages = store.load(number).messages
    store.close()
    assert all(each.state is State.COMPLETE for each in messages)
    assert [each.text for each in messages[1::2]] == ["one two three four five"] * (
        len(messages) // 2
    )
    return [each.text for each in messages[::2]]


def test_keys_edit_a_message(open_chat: Open, folders: dict[str, str]) -> None:
    terminal = open_chat()
    terminal.type(b"hallo" + b"\x1b[D" * 3 + b"\x7fe\x05 there" + ENTER)
    terminal.wait_for("five")
    left(terminal)
    assert questions(folders) == ["hello there"]


def test_alt_enter_and_a_backslash_begin_another_line(
    open_chat: Open, folders: dict[str, str]
) -> None:
    terminal = open_chat()
    terminal.type(b"one" + ALT_ENTER + b"two\\" + ENTER + b"three" + ENTER)
    terminal.wait_for("five")
    left(terminal)
    assert questions(folders) == ["one\ntwo\nthree"]


def test_a_paste_of_many_lines_is_one_message(open_chat: Open, folders: dict[str, str]) -> None:
    terminal = open_chat()
    terminal.type(PASTE % b"one\rtwo\r\n\r\n/quit\rthree\x1b[31m\r" + ENTER)
    terminal.wait_for("five")
    left(terminal)
    assert questions(folders) == ["one\ntwo\n\n/quit\nthree\x1b[31m"]
    assert "\x1b[31m" not in terminal.shown


def test_a_paste_whose_end_is_lost_is_ended_by_hand(
    open_chat: Open, folders: dict[str, str]
) -> None:
    terminal = open_chat()
    terminal.type(b"\x1b[200~pasted")
    terminal.read_for(1.5)
    terminal.type_until(INTERRUPT, "pasted")
    terminal.type(b" and typed" + ENTER)
    terminal.wait_for("five")
    left(terminal)
    assert questions(folders) == ["pasted and typed"]


def test_up_recalls_what_other_chats_asked(open_chat: Open, folders: dict[str, str]) -> None:
    terminal = open_chat()
    terminal.type(b"first" + ENTER)
    terminal.wait_for("five")
    left(terminal)
    assert "`ember chats resume 1` goes on with “first”" in terminal.shown
    again = open_chat()
    again.type(UP + b" again" + ENTER)
    again.wait_for("five")
    left(again)
    assert questions(folders, 2) == ["first again"]


def test_tab_completes_commands_and_files(
    open_chat: Open, folders: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "notes\x1b[31m.txt").write_text("x")
    terminal = open_chat()
    terminal.type(b"/ex" + TAB + str(tmp_path / "a.md").encode() + ENTER)
    terminal.wait_for("nothing to export yet")
    terminal.type(b"/re" + TAB + TAB)
    terminal.wait_for("/retry")
    terminal.wait_for(READS_LINE)
    terminal.type(INTERRUPT)
    terminal.wait_for(HINT)
    terminal.type(f"@{tmp_path}/".encode() + TAB + TAB)
    terminal.wait_for("notes␛[31m.txt")
    terminal.wait_for(READS_LINE)
    terminal.type(INTERRUPT)
    terminal.wait_for(HINT)
    left(terminal, END)
    assert "\x1b[31m" not in terminal.shown


def test_undo_gives_the_message_back_to_be_changed(
    open_chat: Open, folders: dict[str, str]
) -> None:
    terminal = open_chat()
    terminal.type(b"first" + ENTER)
    terminal.wait_for("five")
    terminal.type(b"/undo" + ENTER)
    terminal.wait_for("taken back: first")
    terminal.type(b" again" + ENTER)
    terminal.wait_until(lambda: terminal.shown.count("five") == 2)
    left(terminal)
    assert questions(folders) == ["first again"]


def test_what_is_typed_while_it_answers_is_the_next_message(
    open_chat: Open, folders: dict[str, str]
) -> None:
    terminal = open_chat()
    terminal.type(b"first" + ENTER + b"second" + ENTER)
    terminal.wait_until(lambda: terminal.shown.count("five") == 2)
    left(terminal)
    assert questions(folders) == ["first", "second"]


def test_ctrl_c_clears_the_line_and_ctrl_d_ends(open_chat: Open, folders: dict[str, str]) -> None:
    terminal = open_chat()
    terminal.type(b"not this" + INTERRUPT)
    terminal.wait_until(lambda: terminal.shown.count(HINT) == 2)
    terminal.type(b"this" + ENTER)
    terminal.wait_for("five")
    left(terminal)
    assert questions(folders) == ["this"]


def test_two_windows_on_one_chat_never_mix(open_chat: Open, folders: dict[str, str]) -> None:
    one = open_chat()
    one.type(b"a" + ENTER)
    one.wait_for("five")
    two = open_chat("--continue")
    two.wait_for("this chat is open in another window")
    two.type(b"b" + ENTER)
    two.wait_until(lambda: two.shown.count("five") == 2)
    one.type(b"c" + ENTER)
    one.wait_until(lambda: one.shown.count("five") == 2)
    left(two)
    left(one)
    assert (questions(folders), questions(folders, 2)) == (["a", "c"], ["a", "b"])


def test_an_encoding_without_a_character_shows_another(
    open_chat: Open, folders: dict[str, str]
) -> None:
    terminal = open_chat(PYTHONIOENCODING="ascii")
    terminal.type("größer".encode() + ENTER)
    terminal.wait_for("five")
    left(terminal)
    assert questions(folders) == ["größer"]
    assert all(ord(each) < 128 for each in terminal.shown)


# The editor asks for earlier questions amid its loop, which tells what is raised there.
KILLED = """
import os, signal
from app.interrupt import exit_on_kill
from app.line_editor import LineEditor
def killed():
    os.kill(os.getpid(), signal.SIGTERM)
    return []
exit_on_kill()
LineEditor(killed, lambda _: []).read()
"""


def test_a_kill_amid_the_editors_own_work_ends_it_without_a_word() -> None:
    terminal = Terminal(environment={}, program=("-c", KILLED))
    terminal.wait_until(lambda: terminal.process.poll() is not None)
    assert terminal.close() == 128 + SIGTERM
    assert terminal.shown.count("\x1b[?2004h") == terminal.shown.count("\x1b[?2004l") == 1
    assert "Traceback" not in terminal.shown
    assert "exception" not in terminal.shown
