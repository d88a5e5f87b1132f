"""Leaving always works: by kills, without a terminal, with a model that does not hear."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.interrupt import leaving_on_signal
from app.sessions.chat import Chat, State
from app.sessions.store import SessionStore
from app.tui.app import ChatApp
from tests.app.service.scripted_service import ScriptedService
from tests.app.terminal import INTERRUPT, QUIT, READS_LINE, ROOT, Terminal, inherited

BACKEND = ("--backend", "reference")
ENTER, SETTINGS = b"\r", b"\x1bOQ"
ENDLESS = (
    *("--ctx", "1000000", "--beyond-context", "--max-tokens", "1000000"),
    *("--temp", "0", "--allow-loops"),
)
HUNG_UP, KILLED = 129, 143
# A step that hears nothing; in the model's thread, where steps may be long.
STUCK = """
import os, sys, time
from app import __main__, session
from app.service import live_service
from app.tui.screens import chat

def stuck(*_, **__):
    os.write(1, b"stuck\\n")
    time.sleep(600)

{patch} = stuck
sys.argv[0] = "ember"
__main__.main()
"""
STUCK_ANSWER = STUCK.format(patch="live_service.ChatTokens.prompt")
STUCK_SCREEN = STUCK.format(patch="chat.ChatScreen._tick")
STUCK_LOAD = STUCK.format(patch="live_service.load_admitted")

# Layers wait for the signal, and say that they run.
WAITING = """
import sys, threading
from app import __main__, interrupt
from models.native.kernels import Kernels
from models.network import cpu_llama

heard, run, hear = threading.Event(), Kernels.layers, interrupt.Cancel.set

def waiting(*given, **named):
    print("a layer", flush=True)
    heard.wait(600)
    return run(*given, **named)

def told(cancel):
    hear(cancel)
    heard.set()

Kernels.layers, interrupt.Cancel.set, cpu_llama._PATIENCE = waiting, told, 0.0
sys.argv[0] = "ember"
__main__.main()
"""


def saved(folders: dict[str, str]) -> Chat:
    """The chat that was saved last."""
    chat = SessionStore.open(Path(folders["XDG_DATA_HOME"]) / "ember" / "chats.db").latest()
    assert chat is not None
    return chat


def idle(terminal: Terminal) -> None:
    terminal.wait_for("Ask anything")


def answering(terminal: Terminal) -> None:
    terminal.wait_for("Ask anything")
    terminal.type(b"ba ce di" + ENTER)
    terminal.wait_for("answering")
    terminal.wait_for_more(500)


def in_a_dialog(terminal: Terminal) -> None:
    terminal.wait_for("Ask anything")
    terminal.type(SETTINGS)
    terminal.wait_for("Tab next")


@pytest.mark.parametrize(
    ("number", "until"),
    [
        (signal.SIGTERM, idle),
        (signal.SIGHUP, answering),
        (signal.SIGTERM, in_a_dialog),
        (signal.SIGINT, idle),
    ],
)
def test_a_signal_ends_the_chat_and_restores_the_terminal(
    tiny_path: Path,
    folders: dict[str, str],
    number: signal.Signals,
    until: Callable[[Terminal], None],
) -> None:
    terminal = Terminal("chat", "-m", str(tiny_path), *BACKEND, *ENDLESS, environment=folders)
    until(terminal)
    assert not terminal.is_cooked
    terminal.process.send_signal(number)
    terminal.wait_for("\x1b[?1049l")
    terminal.wait_until(lambda: terminal.is_cooked)
    assert terminal.close() == 128 + number
    assert "Traceback" not in terminal.shown
    if until is answering:
        question, answer = saved(folders).messages
        assert question.text == "ba ce di"
        assert answer.state is State.STOPPED
        assert answer.text


def test_a_screen_that_does_not_hear_leaves_the_terminal_as_it_was(
    tiny_path: Path, folders: dict[str, str]
) -> None:
    command = ["chat", "-m", str(tiny_path), *BACKEND]
    terminal = Terminal(*command, environment=folders, program=("-c", STUCK_SCREEN))
    terminal.wait_for("stuck")
    terminal.process.send_signal(signal.SIGTERM)
    terminal.wait_for("\x1b[?1049l")
    terminal.wait_until(lambda: terminal.is_cooked)
    assert terminal.close() == KILLED


def test_a_kill_before_anything_is_shown_ends_the_chat_too() -> None:
    app = ChatApp(ScriptedService())
    with leaving_on_signal(app.leave, before_end=app.give_terminal_back):
        os.kill(os.getpid(), signal.SIGTERM)
        app.run(headless=True)
    assert app.return_code == KILLED


@pytest.mark.parametrize(
    ("until", "is_controlling"), [(idle, True), (answering, False), (in_a_dialog, False)]
)
def test_a_chat_whose_terminal_has_gone_ends(
    tiny_path: Path,
    folders: dict[str, str],
    until: Callable[[Terminal], None],
    is_controlling: bool,
) -> None:
    terminal = Terminal(
        *("chat", "-m", str(tiny_path), *BACKEND, *ENDLESS),
        environment=folders,
        is_controlling=is_controlling,
    )
    until(terminal)
    assert terminal.hang_up() == HUNG_UP
    if until is answering:
        assert [each.text != "" for each in saved(folders).messages] == [True, True]


def test_a_terminal_that_takes_nothing_more_keeps_nobody(
    tiny_path: Path, folders: dict[str, str]
) -> None:
    terminal = Terminal("chat", "-m", str(tiny_path), *BACKEND, *ENDLESS, environment=folders)
    answering(terminal)
    time.sleep(1)  # nobody reads, so that its buffer fills
    terminal.process.terminate()
    assert terminal.process.wait(timeout=60) == KILLED
    terminal.close()


@pytest.mark.parametrize("keys", [QUIT, INTERRUPT * 3, None], ids=["quit", "interrupt", "kill"])
def test_a_model_that_does_not_hear_keeps_nobody(
    tiny_path: Path, folders: dict[str, str], keys: bytes | None
) -> None:
    command = ("chat", "-m", str(tiny_path), *BACKEND)
    terminal = Terminal(*command, environment=folders, program=("-c", STUCK_ANSWER))
    terminal.wait_for("Ask anything")
    terminal.type(b"ba ce di" + ENTER)
    terminal.wait_for("reading the prompt")
    if keys is None:
        terminal.process.terminate()
    else:
        terminal.type(keys)
    assert terminal.close() == (KILLED if keys is None else 0)
    assert "\x1b[?1049l" in terminal.shown
    assert [each.text for each in saved(folders).messages] == ["ba ce di"]


def test_a_load_that_does_not_hear_keeps_nobody(tiny_path: Path, folders: dict[str, str]) -> None:
    command = ("chat", "-m", str(tiny_path), *BACKEND)
    terminal = Terminal(*command, environment=folders, program=("-c", STUCK_LOAD))
    terminal.wait_for("loading the model")
    terminal.process.terminate()
    assert terminal.close() == KILLED
    assert "\x1b[?1049l" in terminal.shown


def lines_loading(terminal: Terminal) -> None:
    terminal.wait_for("stuck")


def lines_idle(terminal: Terminal) -> None:
    terminal.wait_for(READS_LINE)


def lines_answering(terminal: Terminal) -> None:
    terminal.wait_for(READS_LINE)
    terminal.type(b"ba ce di" + ENTER)
    terminal.wait_for("reading")
    begun = terminal.shown.index("reading")
    terminal.wait_until(lambda: "\x1b[1A\x1b[2K" in terminal.shown[begun:])  # of the bar
    terminal.wait_for_more(300)


LINES = [lines_loading, lines_idle, lines_answering]


def line_chat(
    model: Path,
    folders: dict[str, str],
    until: Callable[[Terminal], None],
    *,
    is_controlling: bool = True,
) -> Terminal:
    """A chat without a screen that is so far; its load goes on for ever where that is wanted."""
    terminal = Terminal(
        *("chat", "--plain", "-m", str(model), *BACKEND, *ENDLESS),
        environment=folders,
        program=("-c", STUCK_LOAD) if until is lines_loading else ("-m", "app"),
        is_controlling=is_controlling,
    )
    until(terminal)
    return terminal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("until", LINES)
def test_a_signal_ends_a_line_chat_and_restores_the_terminal(
    tiny_path: Path,
    folders: dict[str, str],
    until: Callable[[Terminal], None],
    number: signal.Signals,
) -> None:
    terminal = line_chat(tiny_path, folders, until)
    terminal.process.send_signal(number)
    terminal.wait_until(lambda: terminal.process.poll() is not None)
    assert terminal.is_cooked
    assert terminal.close() == 128 + number
    assert terminal.shown.count("\x1b[?2004h") == terminal.shown.count("\x1b[?2004l")
    assert "Traceback" not in terminal.shown
    if until is lines_answering:
        question, answer = saved(folders).messages
        assert (question.text, answer.state) == ("ba ce di", State.STOPPED)
        assert answer.text


@pytest.mark.parametrize("is_controlling", [True, False])
@pytest.mark.parametrize("until", LINES)
def test_a_line_chat_whose_terminal_has_gone_ends(
    tiny_path: Path,
    folders: dict[str, str],
    until: Callable[[Terminal], None],
    is_controlling: bool,
) -> None:
    terminal = line_chat(tiny_path, folders, until, is_controlling=is_controlling)
    assert terminal.hang_up() == HUNG_UP
    if until is lines_answering:
        assert [each.text != "" for each in saved(folders).messages] == [True, True]


@pytest.mark.parametrize("is_controlling", [True, False])
def test_a_chat_whose_terminal_goes_while_it_loads_ends(
    tiny_path: Path, folders: dict[str, str], is_controlling: bool
) -> None:
    terminal = Terminal(
        *("chat", "-m", str(tiny_path), *BACKEND),
        environment=folders,
        program=("-c", STUCK_LOAD),
        is_controlling=is_controlling,
    )
    terminal.wait_for("loading the model")
    assert terminal.hang_up() == HUNG_UP


def test_a_line_chat_that_does_not_hear_ends_by_a_second_interrupt(
    tiny_path: Path, folders: dict[str, str]
) -> None:
    command = ("chat", "--plain", "-m", str(tiny_path), *BACKEND)
    terminal = Terminal(*command, environment=folders, program=("-c", STUCK_ANSWER))
    terminal.wait_for(READS_LINE)
    terminal.type(b"ba ce di" + ENTER)
    terminal.wait_for("stuck")
    terminal.type(INTERRUPT)
    terminal.type_until(INTERRUPT, "ember: interrupted")
    assert terminal.close() == 128 + signal.SIGINT
    assert [each.text for each in saved(folders).messages] == ["ba ce di"]


def test_a_run_whose_load_does_not_hear_ends_by_a_kill(tiny_path: Path) -> None:
    stuck = STUCK.format(patch="session.load")
    terminal = Terminal("run", "-m", str(tiny_path), "-p", "ba", *BACKEND, program=("-c", stuck))
    terminal.wait_for("stuck")
    terminal.process.terminate()
    assert terminal.close() == KILLED


def test_an_interrupt_amid_a_step_of_a_prompt_ends_the_run(tiny_path: Path) -> None:
    command = ("run", "-m", str(tiny_path), "-p", "ba ce di", "--backend", "cpu")
    terminal = Terminal(*command, "--kv", "f16", program=("-c", WAITING))
    terminal.wait_for("a layer")
    terminal.type(INTERRUPT)
    assert terminal.close() == 128 + signal.SIGINT
    assert terminal.shown.count("a layer") == 1  # of three
    assert "Traceback" not in terminal.shown


def test_a_killed_run_keeps_what_was_answered(tiny_path: Path) -> None:
    process = run_of(tiny_path, *ENDLESS)
    assert process.stdout is not None
    begun = os.read(process.stdout.fileno(), 100)
    process.terminate()
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == KILLED
    assert (begun + rest).endswith(b"\n")
    assert b"Traceback" not in errors


def test_what_was_started_to_ignore_hang_ups_does(tiny_path: Path) -> None:
    """As nohup starts programs."""
    process = run_of(
        tiny_path,
        "--max-tokens",
        "300",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 100)
    process.send_signal(signal.SIGHUP)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert b"300 tokens" in errors


def run_of(model: Path, *options: str, **popen: Any) -> "subprocess.Popen[bytes]":
    """`run` with a question on its stdin."""
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "run", "-m", str(model), *BACKEND, *options],
        cwd=ROOT,
        env=inherited(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **popen,
    )
    assert process.stdin is not None
    process.stdin.write(b"ba ce di")
    process.stdin.close()
    process.stdin = None
    return process
