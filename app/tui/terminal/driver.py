"""Textual's terminal driver with an input of our own (see `terminal_input`), for terminals that go.

A window that was closed, or a line that was cut, ends the program; what is still
written to it goes nowhere. Stopped by Ctrl-Z or a signal, it gives the terminal back.
"""

import os
import signal
import sys
import termios
from asyncio import get_running_loop
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from select import select
from threading import Lock
from typing import Any

from textual.app import App
from textual.drivers.linux_driver import LinuxDriver
from textual.message import Message

from app.tui.terminal.terminal_input import TerminalInput

_READ_BYTES = 1 << 16
_WAIT_SECONDS = 0.1
# What Textual asks a terminal for, taken back: the keyboard, its other screen, a cursor, wrapped
# lines, no mouse, focus or marked pastes; and the title from before.
_AS_BEFORE = (
    "\x1b[<u\x1b[?1049l\x1b[?25h\x1b[?7h"
    "\x1b[?1000l\x1b[?1003l\x1b[?1015l\x1b[?1006l\x1b[?1004l\x1b[?2004l\x1b[23;2t"
)


class TerminalGone(Message):
    """Nobody is there any more to see or type."""


class ForgivingDriver(LinuxDriver):
    """Reads whatever a terminal may send."""

    def __init__(self, app: App[Any], **options: Any) -> None:
        super().__init__(app, **options)
        self._losing = Lock()
        self._file = _Output(self._lose)
        self._is_drawing = self._draws_again = False

    def start_application_mode(self) -> None:
        """Draw and read, and be stopped between two steps of the loop only.

        Textual's handlers run amid whatever the loop does, and wait for ever for a queue that
        it is just writing to.
        """
        loop = get_running_loop()
        loop.add_signal_handler(signal.SIGTSTP, self._stop)
        loop.add_signal_handler(signal.SIGCONT, self._go_on)
        self._is_drawing = True
        super().start_application_mode()  # type: ignore[no-untyped-call]

    def stop_application_mode(self) -> None:
        """Give the terminal back; a signal to go on that comes late does not take it again."""
        self._is_drawing = self._draws_again = False
        super().stop_application_mode()

    def _stop(self) -> None:
        if self._is_drawing:
            self.suspend_application_mode()
            self._draws_again = True
        os.kill(os.getpid(), signal.SIGSTOP)

    def _go_on(self) -> None:
        """Draw anew: the terminal may have been another's, after SIGSTOP unheard by this one."""
        if not self._is_in_front():
            self._stop()
            return
        draws = self._is_drawing or self._draws_again
        if self._is_drawing:
            self.suspend_application_mode()
        if draws:
            self.resume_application_mode()

    def _is_in_front(self) -> bool:
        """Whether the shell lets this program use the terminal; True where none decides."""
        try:
            return os.tcgetpgrp(self.fileno) == os.getpgrp()
        except OSError:
            return True

    def run_input_thread(self) -> None:
        """Read input until the program ends, or the terminal does."""
        source = TerminalInput(debug=self._debug)
        for event in source.feed(self._typed_before()):
            self.process_message(event)
        while not self.exit_event.is_set():
            if select([self.fileno], [], [], _WAIT_SECONDS)[0]:
                data = self._read()
                if not data:
                    self._lose()
                    return
                for event in source.feed(data):
                    self.process_message(event)
            for event in source.tick():
                self.process_message(event)
        for event in source.leave():
            self.process_message(event)

    def give_back(self) -> None:
        """Leave the terminal as it was found, whatever the app does, which goes no further."""
        with suppress(OSError, termios.error):
            if self.attrs_before is not None:
                termios.tcsetattr(self.fileno, termios.TCSANOW, self.attrs_before)
            os.set_blocking(self.fileno, False)
            os.write(self.fileno, _AS_BEFORE.encode())

    def _typed_before(self) -> bytes:
        """What was typed while the terminal was not ours, and took Enter for the end of a line."""
        is_any = bool(select([self.fileno], [], [], 0)[0])
        return self._read().replace(b"\n", b"\r") if is_any else b""

    def _read(self) -> bytes:
        try:
            return os.read(self.fileno, _READ_BYTES)
        except OSError:  # how a pseudo-terminal says that the other side has gone
            return b""

    def _lose(self) -> None:
        """Once: read and write nothing from now on, and say so to the app."""
        if not self._losing.acquire(blocking=False):
            return
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nowhere, stream)
        os.close(nowhere)
        self.process_message(TerminalGone())


class _Output(TextIOWrapper):
    """Where Textual draws, which is stderr; its writing thread would not outlive an error."""

    def __init__(self, lose: Callable[[], None]) -> None:
        assert sys.__stderr__ is not None
        raw = open(sys.__stderr__.fileno(), "wb", closefd=False)  # noqa: SIM115 (closed with this)
        super().__init__(raw, sys.__stderr__.encoding, "backslashreplace")
        self._lose = lose

    def write(self, text: str) -> int:
        with self._losses():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._losses():
            super().flush()

    @contextmanager
    def _losses(self) -> Iterator[None]:
        try:
            yield
        except BlockingIOError:
            pass
        except OSError:
            self._lose()
