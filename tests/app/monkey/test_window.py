"""The monkey takes for faults of the chat what are some, not what it does itself."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import cast

import psutil
import pytest

from tests.app.monkey.actions import Ask, End, Pause, Type, Undo
from tests.app.monkey.kept import FaultError, Kept
from tests.app.monkey.window import Window
from tests.app.terminal import INTERRUPT, Terminal

_EMPTY, _DIALOG = "Ask, / commands", "╭─ The window is too small ─"
_CLEAR = "\x1b[2J\x1b[H"


class Chat:
    """Stands in for terminal, process and database: `answer` is what a chat does with keys."""

    pid = 1

    def __init__(self, answer: Callable[["Chat", bytes], None]) -> None:
        self._answer = answer
        self.process = self
        self.shown, self.code = _EMPTY, cast("int | None", None)
        self.saved = set[str]()
        self.signals = list[int]()

    def window(self) -> Window:
        return Window(cast(Terminal, self), cast(Kept, self))

    def show(self, text: str) -> None:
        self.shown += _CLEAR + text

    def type(self, keys: bytes) -> None:
        self._answer(self, keys)

    def read_for(self, _seconds: float) -> None: ...

    def read_some(self, _seconds: float) -> None: ...

    def poll(self) -> int | None:
        return self.code

    def send_signal(self, number: int) -> None:
        """It hears a kill once it goes on."""
        if number == signal.SIGCONT and signal.SIGTERM in self.signals:
            self.code = 143
        self.signals.append(number)

    def close(self) -> int:
        assert self.code is not None, "it does not end"
        return self.code

    def has(self, word: str) -> bool:
        return word in self.saved

    def look(self) -> None: ...

    def vanished(self) -> list[str]:
        return []


def echo(chat: Chat, keys: bytes) -> None:
    """An empty prompt after it was emptied, else what was typed."""
    chat.show(_EMPTY if keys.endswith(b"\x7f") else keys.decode().replace("\x1b", ""))


def test_what_waits_below_a_dialog_is_taken() -> None:
    def answer(chat: Chat, keys: bytes) -> None:
        if keys == b"\r":
            chat.show(_DIALOG)
        elif keys == b"\x1b":
            chat.saved.add("a001")
            chat.show(_EMPTY)
        else:
            echo(chat, keys)

    chat = Chat(answer)
    chat.window().do(Ask(word="a001", at_once=True))
    assert chat.saved == {"a001"}


def test_what_a_dialog_of_an_earlier_key_took_is_sent_again() -> None:
    enters = 0

    def answer(chat: Chat, keys: bytes) -> None:
        nonlocal enters
        if keys == b"\r":
            enters += 1
            if enters == 1:
                chat.show(_DIALOG + "a001")
            else:
                chat.saved.add("a001")
        elif keys != b"\x1b":
            echo(chat, keys)
        else:
            chat.show("a001")

    chat = Chat(answer)
    window = chat.window()
    window.do(Ask(word="a001", at_once=True))
    assert (enters, window.sent_again, chat.saved) == (2, 1, {"a001"})


@pytest.mark.parametrize("runs", [False, True])
def test_one_leaves_by_interrupts_whatever_runs(runs: bool) -> None:
    def answer(chat: Chat, keys: bytes) -> None:
        nonlocal runs
        armed = False  # not any more, where the machine lets us wait for the next keys
        for _ in range(keys.count(INTERRUPT)):
            if runs:
                runs = False
            else:
                chat.code, armed = (0 if armed else None), True
        if INTERRUPT not in keys:
            echo(chat, keys)

    Chat(answer).window().end(End.INTERRUPTED)


def leaves_with(code: int) -> Chat:
    def answer(chat: Chat, keys: bytes) -> None:
        if INTERRUPT in keys:
            chat.code = code
        else:
            echo(chat, keys)

    return Chat(answer)


@pytest.mark.parametrize("code", [0, 130])
def test_a_chat_may_be_leaving_when_it_is_interrupted_again(code: int) -> None:
    leaves_with(code).window().end(End.INTERRUPTED)


def test_another_exit_code_is_a_fault() -> None:
    with pytest.raises(FaultError, match="with 1, expected 0 or 130"):
        leaves_with(1).window().end(End.INTERRUPTED)


def test_a_paste_whose_end_was_lost_is_ended() -> None:
    is_stuck, ends = True, 0

    def answer(chat: Chat, keys: bytes) -> None:
        nonlocal is_stuck, ends
        if keys.startswith(b"\x1b[201~"):
            ends += 1
            is_stuck = ends < 2
        if not is_stuck:
            echo(chat, keys)

    chat = Chat(answer)
    chat.window().do(Type(word="a001"))
    assert "a001" in chat.shown


def test_a_chat_that_stops_late_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    status = psutil.STATUS_RUNNING
    monkeypatch.setattr(psutil.Process, "status", lambda _self: status)

    chat = Chat(echo)
    window = chat.window()
    window.do(Pause(by_key=True))
    status = psutil.STATUS_STOPPED
    window.end(End.SIGTERM)
    assert chat.signals == [signal.SIGCONT, signal.SIGTERM, signal.SIGCONT]


def test_a_slow_chat_has_done_a_command_before_the_next_step() -> None:
    looks, done = 0, False

    class Slow(Chat):
        """Shows what was typed, and does it, some looks later."""

        def read_some(self, _seconds: float) -> None:
            nonlocal looks, done
            looks -= 1
            if looks == 0:
                done = self.shown.endswith("❯ /undo")
                self.show(_EMPTY if done else "❯ /undo")

    def answer(chat: Chat, keys: bytes) -> None:
        nonlocal looks
        if keys in (b"/undo", b"\r"):
            looks = 3
        else:
            echo(chat, keys)

    Slow(answer).window().do(Undo())
    assert done


def test_what_a_chat_does_that_failed_is_told(tmp_path: Path) -> None:
    program = "def waits():\n    print('it runs', flush=True)\n    time.sleep(600)\n"
    terminal = Terminal(
        program=("-c", f"import time\n{program}\nwaits()"),
        environment={"PYTHONFAULTHANDLER": "1"},
    )
    terminal.wait_for("it runs")
    assert " in waits\n" in Window(terminal, Kept(tmp_path, "a")).stacks()
