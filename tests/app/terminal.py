"""A command on a pseudo-terminal, for tests."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from codecs import getincrementaldecoder
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from app import cli
from tests.patience import patience

ROOT = Path(cli.__file__).parent.parent
INTERRUPT, END, QUIT = b"\x03", b"\x04", b"\x11"
READS_LINE = "\x1b[?2004h"  # the line editor waits for a message
_SECONDS = 60
_SIZE = 120, 36
_SIZES = "COLUMNS", "LINES"
_LOCAL_FLAGS = 3  # where termios.tcgetattr has them


class Terminal:
    """A command on a pseudo-terminal, and all it has shown."""

    def __init__(
        self,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        program: Sequence[str] = ("-m", "app"),
        is_controlling: bool = True,
        folder: Path = ROOT,
    ) -> None:
        """program: what Python runs. is_controlling: signals come from the terminal too.

        folder: where it runs.
        """
        self._master, slave = pty.openpty()
        self.resize(*_SIZE)
        self.process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            cwd=folder,
            env={**inherited(), **(environment or {})},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_own_terminal if is_controlling else hear_signals,
        )
        os.close(slave)
        self.shown = ""
        self._typed_at = 0  # what was shown before the last keys answers none of them
        # A read may end amid a character.
        self._decoder = getincrementaldecoder("utf-8")(errors="replace")

    def type(self, keys: bytes) -> None:
        """Write keys, reading what is shown meanwhile, as a full terminal takes no more.

        A program that has ended gets none.
        """
        self._read(0)
        self._typed_at = len(self.shown)
        while keys and self.process.poll() is None:
            if select.select([], [self._master], [], 0.05)[1]:
                keys = keys[os.write(self._master, keys[:1024]) :]
            self._read(0)

    def resize(self, columns: int, rows: int) -> None:
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def read_for(self, seconds: float) -> None:
        """Read whatever comes within the time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._read(left)

    def read_some(self, seconds: float) -> None:
        """Read what comes first within the time."""
        self._read(seconds)

    def wait_for(self, text: str) -> None:
        """Read until `text` has been shown after the last keys began."""
        deadline = time.monotonic() + patience(_SECONDS)
        while self.shown.find(text, self._typed_at) < 0:
            if not self._read(deadline - time.monotonic()):
                pytest.fail(f"ended, or said nothing, before {text!r}: {self.shown[-2000:]!r}")

    def wait_for_more(self, count: int) -> None:
        """Read until so many more characters have been shown."""
        before = len(self.shown)
        deadline = time.monotonic() + patience(_SECONDS)
        while len(self.shown) < before + count:
            if not self._read(deadline - time.monotonic()):
                pytest.fail(f"ended, or said no more: {self.shown[-2000:]!r}")

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Read until something holds."""
        deadline = time.monotonic() + patience(_SECONDS)
        while not holds():
            assert time.monotonic() < deadline, self.shown[-2000:]
            self.read_for(0.1)

    def type_until(self, keys: bytes, text: str) -> None:
        """Type again until `text` has been shown.

        Python hears a signal in the moment before it waits for a line with the next key only.
        """

        def is_shown() -> bool:
            self.type(keys)
            self.read_for(2)
            return text in self.shown

        self.wait_until(is_shown)

    @property
    def is_cooked(self) -> bool:
        """Whether the terminal echoes and edits lines, as a shell expects it."""
        flags: int = termios.tcgetattr(self._master)[_LOCAL_FLAGS]
        wanted = termios.ECHO | termios.ICANON | termios.ISIG
        return flags & wanted == wanted

    def hang_up(self) -> int:
        """Take the terminal away; returns the exit code, -SIGKILL for a program that stays."""
        os.close(self._master)
        try:
            return self.process.wait(timeout=patience(_SECONDS))
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def close(self) -> int:
        """Wait for the end, whatever is still shown; returns the exit code."""
        deadline = time.monotonic() + patience(_SECONDS)
        while (left := deadline - time.monotonic()) > 0 and self._read(left):
            pass
        os.close(self._master)
        return self.process.wait(timeout=patience(_SECONDS))

    def _read(self, seconds: float) -> bool:
        """Take what is shown within the time; False at the end, or if nothing is."""
        if not select.select([self._master], [], [], max(seconds, 0))[0]:
            return False
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # how a pseudo-terminal says that the other side has gone
            return False
        self.shown += self._decoder.decode(data)
        return bool(data)


def inherited() -> dict[str, str]:
    """Our environment but for what it says of another terminal: size, kind and characters."""
    kept = {key: value for key, value in os.environ.items() if key not in _SIZES}
    return {**kept, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}


def hear_signals() -> None:
    """For a process that is to begin."""
    # As a shell starts programs; ours may have been started to ignore them, as nohup does.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _own_terminal() -> None:
    hear_signals()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
