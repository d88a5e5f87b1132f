"""The full-screen chat in a real terminal."""

import os
import re
import signal
import stat
from pathlib import Path

import psutil
import pytest

from app.sessions.chat import State
from app.sessions.store import SessionStore
from models.text.messages import Role
from tests.app.monkey.play import Game, play
from tests.app.terminal import END, INTERRUPT, QUIT, READS_LINE, Terminal

# Nothing to be compiled in the empty home folder that these tests give the program.
BACKEND = ("--backend", "reference")
ENTER, ESCAPE = b"\r", b"\x1b"
_COLOUR = re.compile(r"\x1b\[[\d;]*(?:38|48);[25];[\d;]*m")


def saved(tmp_path: Path) -> SessionStore:
    """The store that the chat has written."""
    (path,) = tmp_path.rglob("chats.db")
    return SessionStore.open(path)


def saved_answer(tmp_path: Path) -> str:
    """What is on disk of the answer that the chat is giving."""
    chat = saved(tmp_path).latest()
    return chat.messages[1].text if chat and len(chat.messages) > 1 else ""


def test_a_killed_chat_is_resumed(tiny_path: Path, tmp_path: Path, folders: dict[str, str]) -> None:
    endless = ("--max-tokens", "99999", "--temp", "0", "--allow-loops")
    command = ["chat", "-m", str(tiny_path), *BACKEND, *endless]
    terminal = Terminal(*command, environment=folders)
    terminal.wait_for("Ask anything")
    terminal.type(b"ba ce di" + ENTER)
    terminal.wait_for("answering")
    terminal.wait_until(lambda: len(saved_answer(tmp_path)) > 100)
    before = saved_answer(tmp_path)
    os.kill(terminal.process.pid, signal.SIGKILL)
    terminal.close()
    chat = saved(tmp_path).latest()
    assert chat is not None
    assert chat.messages[0].text == "ba ce di"
    assert chat.messages[1].text.startswith(before)
    assert chat.messages[1].state is State.STOPPED
    again = Terminal(*command, "--continue", environment=folders)
    again.wait_for("ba ce di")
    again.type(QUIT)
    assert again.close() == 0


def test_two_windows_on_one_chat_never_mix(
    tiny_path: Path, tmp_path: Path, folders: dict[str, str]
) -> None:
    command = ["chat", "-m", str(tiny_path), *BACKEND, "--max-tokens", "3"]

    def asked(title: str) -> list[str]:
        """The questions of a chat, all of them answered."""
        store = saved(tmp_path)
        found = [store.load(each.id) for each in store.chats() if each.title == title]
        messages = found[0].messages if found else []
        store.close()
        assert [each.role for each in messages[::2]] == [Role.USER] * len(messages[::2])
        whole = messages and messages[-1].state is not State.STREAMING and len(messages) % 2 == 0
        return [each.text for each in messages[::2]] if whole else []

    one = Terminal(*command, environment=folders)
    one.wait_for("Ask anything")
    one.type(b"ba ce" + ENTER)
    one.wait_until(lambda: asked("ba ce") == ["ba ce"])
    two = Terminal(*command, "--continue", environment=folders)
    two.wait_for("this chat is open in")  # what is drawn over is cut
    two.wait_for("reference")  # its model is there
    two.type(b"fo1" + ENTER)
    one.type(b"gu1" + ENTER)
    two.wait_until(lambda: asked("ba ce (fork)") == ["ba ce", "fo1"])
    one.wait_until(lambda: asked("ba ce") == ["ba ce", "gu1"])
    one.type(b"gu2" + ENTER)
    two.type(b"fo2" + ENTER)
    one.wait_until(lambda: asked("ba ce") == ["ba ce", "gu1", "gu2"])
    two.wait_until(lambda: asked("ba ce (fork)") == ["ba ce", "fo1", "fo2"])
    for terminal in (two, one):
        terminal.type(QUIT)
        assert terminal.close() == 0
        assert "Traceback" not in terminal.shown
    assert asked("ba ce") == ["ba ce", "gu1", "gu2"]
    assert asked("ba ce (fork)") == ["ba ce", "fo1", "fo2"]


def test_sizes_keys_and_pastes_provoke_no_traceback(
    tiny_path: Path, tmp_path: Path, folders: dict[str, str]
) -> None:
    terminal = Terminal("chat", "-m", str(tiny_path), *BACKEND, environment=folders)
    terminal.wait_for("Ask anything")
    for columns, rows in ((80, 24), (60, 20), (20, 5), (1, 1), (120, 36)):
        terminal.resize(columns, rows)
        terminal.read_for(0.3)
    terminal.type(b"\x1b[200~" + b"pasted [x] \x07text\r" * 12_000 + b"\x1b[201~")
    terminal.wait_for("pasted text 1")
    terminal.type(ENTER)
    terminal.wait_for("window is too small")
    terminal.type(ESCAPE)
    terminal.type(bytes(set(range(1, 32)) - {0x11, 0x1A}))  # but what quits, and what stops
    terminal.read_for(1)
    terminal.type(b"\xff\xfe\x80\x1b[999;999R\x1b[<0;5;5M\x1b[<0;5;5m")
    terminal.read_for(0.5)
    terminal.type(ESCAPE)
    terminal.read_for(0.3)
    terminal.type(QUIT)
    assert terminal.close() == 0
    assert "Traceback" not in terminal.shown


def test_random_misuse_loses_nothing(tiny_path: Path, tmp_path: Path) -> None:
    game = Game(model=tiny_path, cache=tmp_path, length=10, options=BACKEND)
    assert play(game, 1).faults == []


def test_a_paste_full_of_escapes_is_text(tiny_path: Path, folders: dict[str, str]) -> None:
    terminal = Terminal("chat", "-m", str(tiny_path), *BACKEND, environment=folders)
    terminal.wait_for("Ask anything")
    terminal.type(b"\x1b[200~" + b"\x1b[31mred\x1b[0m /quit\r" * 47_000 + b"\x1b[201~")
    terminal.wait_for("pasted text 1")
    terminal.type(b"\x1b[200~one\x1b[201~ two\r\x1b]2;x\x07\x1b[201~")
    terminal.wait_for("one␛[201~ two")
    terminal.type(QUIT)
    assert terminal.close() == 0
    assert "\x1b]2;x" not in terminal.shown
    assert "Traceback" not in terminal.shown


def test_quitting_and_escape_end_a_compilation(
    tiny_path: Path, tmp_path: Path, folders: dict[str, str]
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] || exec sleep 600\n')
    compiler.chmod(0o755)
    environment = folders | {"CXX": str(compiler), "EMBER_CACHE": str(tmp_path / "cache")}
    command = ["chat", "-m", str(tiny_path), "--backend", "cpu"]
    for key in (b"", ESCAPE):
        terminal = Terminal(*command, environment=environment)
        terminal.wait_for("compiling the kernels")
        terminal.type(key)
        if key:
            terminal.wait_for("No model is loaded")
        terminal.type(QUIT)
        assert terminal.close() == 0
        assert not list((tmp_path / "cache").rglob("*.so"))
        assert "Traceback" not in terminal.shown


def test_a_late_interrupt_changes_nothing(tiny_path: Path, folders: dict[str, str]) -> None:
    terminal = Terminal("chat", "-m", str(tiny_path), *BACKEND, environment=folders)
    terminal.wait_for("Ask anything")
    terminal.type(QUIT)
    terminal.wait_for("\x1b[?1049l")
    for _ in range(9):
        terminal.read_for(0.05)
        if terminal.process.poll() is None:
            terminal.process.send_signal(signal.SIGINT)
    assert terminal.close() in (0, 130)
    assert "Traceback" not in terminal.shown


def test_files_that_were_cut_short_keep_nobody_from_starting(
    tiny_path: Path, tmp_path: Path, folders: dict[str, str]
) -> None:
    chats, settings = tmp_path / "data/ember/chats.db", tmp_path / "config/ember/settings.toml"
    for path, content in ((chats, b"SQLite format 3\x00" * 999), (settings, b"temp = ")):
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    command = ["chat", "-m", str(tiny_path), *BACKEND]
    terminal = Terminal(*command, "--continue", environment=folders)
    terminal.wait_for("default")  # notices break their lines
    terminal.wait_for("Ask anything")
    assert chats.with_name("chats.db.damaged-1").exists()
    terminal.type(b"ba ce di" + ENTER)
    terminal.wait_until(lambda: len(saved_answer(tmp_path)) > 0)
    terminal.type(QUIT)
    assert terminal.close() == 0
    assert settings.read_bytes() == b"temp = "
    modes = [stat.S_IMODE(each.stat().st_mode) for each in (chats, chats.parent)]
    assert modes == [0o600, 0o700]
    plain = Terminal(*command, "--plain", environment=folders)
    plain.wait_for("the defaults are used")
    plain.wait_for(READS_LINE)
    plain.type(END)
    assert plain.close() == 0


def is_stopped(terminal: Terminal) -> bool:
    return psutil.Process(terminal.process.pid).status() == psutil.STATUS_STOPPED


@pytest.mark.parametrize("opened", [b"", b"\x10"], ids=["prompt", "palette"])
def test_ctrl_z_gives_the_shell_back_and_fg_returns(
    opened: bytes, tiny_path: Path, folders: dict[str, str]
) -> None:
    terminal = Terminal("chat", "-m", str(tiny_path), *BACKEND, environment=folders)
    terminal.wait_for("Ask anything")
    terminal.type(opened)
    terminal.wait_for("Commands" if opened else "")
    terminal.type(b"typed before")
    terminal.wait_for("before")
    terminal.type(b"\x1a")
    terminal.wait_for("\x1b[?1049l")
    terminal.wait_until(lambda: is_stopped(terminal))
    assert terminal.is_cooked
    terminal.process.send_signal(signal.SIGCONT)
    terminal.wait_until(lambda: terminal.shown.rindex("[?1049h") > terminal.shown.rindex("[?1049l"))
    terminal.type(b" and after")
    terminal.wait_for("after")
    terminal.type(QUIT)
    assert terminal.close() == 0
    assert "Traceback" not in terminal.shown


def test_a_stop_is_heard_whatever_is_drawn(tiny_path: Path, folders: dict[str, str]) -> None:
    terminal = Terminal("chat", "-m", str(tiny_path), *BACKEND, environment=folders)
    terminal.wait_for("Ask anything")
    for word in ("one", "two", "three"):
        terminal.type(word.encode() * 20)
        terminal.process.send_signal(signal.SIGTSTP)
        terminal.wait_until(lambda: is_stopped(terminal))
        assert terminal.is_cooked
        terminal.process.send_signal(signal.SIGCONT)
        terminal.wait_until(lambda: not terminal.is_cooked)
    terminal.type(QUIT)
    assert terminal.close() == 0


@pytest.mark.parametrize("first", [(), (signal.SIGSTOP,)], ids=["running", "stopped"])
def test_it_goes_on_after_a_stop_that_it_has_not_heard_of(
    first: tuple[signal.Signals, ...], tiny_path: Path, folders: dict[str, str]
) -> None:
    terminal = Terminal("chat", "-m", str(tiny_path), *BACKEND, environment=folders)
    terminal.wait_for("Ask anything")
    for number in (*first, signal.SIGCONT):
        terminal.process.send_signal(number)
    terminal.wait_until(lambda: terminal.shown.count("[?1049h") == 2)
    terminal.type(b"typed after")
    terminal.wait_for("after")
    terminal.type(QUIT)
    terminal.wait_until(lambda: terminal.process.poll() is not None)
    assert terminal.is_cooked
    assert terminal.close() == 0


def test_a_paste_into_a_stopped_chat_is_no_trap(tiny_path: Path, folders: dict[str, str]) -> None:
    terminal = Terminal("chat", "-m", str(tiny_path), *BACKEND, environment=folders)
    terminal.wait_for("Ask anything")
    terminal.process.send_signal(signal.SIGTSTP)
    terminal.wait_until(lambda: is_stopped(terminal))
    # More than a line that a terminal edits may have, of which it drops the end.
    terminal.type(b"\x1b[200~" + b"pasted " * 1000 + b"\x1b[201~")
    terminal.process.send_signal(signal.SIGCONT)
    terminal.wait_until(lambda: not terminal.is_cooked)
    terminal.type(b"unheard")
    terminal.read_for(1.5)
    terminal.type_until(INTERRUPT, "pasted text 1")
    terminal.type(b"typed after")
    terminal.wait_for("after")
    terminal.type(QUIT)
    assert terminal.close() == 0


def test_what_is_typed_before_the_chat_is_there_is_sent(
    tiny_path: Path, tmp_path: Path, folders: dict[str, str]
) -> None:
    terminal = Terminal("chat", "-m", str(tiny_path), *BACKEND, environment=folders)
    terminal.type(b"ba ce\r")
    terminal.wait_for("Stop")
    terminal.wait_until(lambda: bool(list(tmp_path.rglob("chats.db"))))
    terminal.wait_until(lambda: bool(saved_answer(tmp_path)))
    terminal.type(QUIT)
    assert terminal.close() == 0
    chat = saved(tmp_path).latest()
    assert chat is not None
    assert chat.messages[0].text == "ba ce"


def test_what_has_come_of_a_paste_is_kept_by_a_stop(
    tiny_path: Path, folders: dict[str, str]
) -> None:
    terminal = Terminal("chat", "-m", str(tiny_path), *BACKEND, environment=folders)
    terminal.wait_for("Ask anything")
    terminal.type(b"\x1b[200~pasted so far")
    terminal.read_for(0.5)
    terminal.process.send_signal(signal.SIGTSTP)
    terminal.wait_until(lambda: is_stopped(terminal))
    terminal.process.send_signal(signal.SIGCONT)
    terminal.wait_for("pasted so far")
    terminal.type(QUIT)
    assert terminal.close() == 0


def test_no_color_is_obeyed(tiny_path: Path, folders: dict[str, str]) -> None:
    terminal = Terminal(
        "chat", "-m", str(tiny_path), *BACKEND, environment=folders | {"NO_COLOR": "1"}
    )
    terminal.wait_for("Ask anything")
    terminal.type(QUIT)
    assert terminal.close() == 0
    colours = set(_COLOUR.findall(terminal.shown))
    greys = [colour for colour in colours if _is_grey(colour)]
    assert colours
    assert len(greys) == len(colours)


def _is_grey(sequence: str) -> bool:
    """Whether all colours of a sequence have equal red, green and blue."""
    triples = re.findall(r"[34]8;2;(\d+);(\d+);(\d+)", sequence)
    return all(red == green == blue for red, green, blue in triples)
