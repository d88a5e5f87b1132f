"""A program on a pseudo-terminal, and how long its key presses take to be seen.

Knows no chat: only that letters typed into the program are drawn side by side.
"""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psutil

_ROWS, _COLUMNS = 36, 120
_KEY_EVERY = 0.15
_PATIENCE = 5.0
_TAIL = 4000
_EMPTY_LINE = b"\x15"  # Ctrl-U
# Drawn before the letters, so that no text of the program's own is taken for them.
_MARK = "~~"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, kw_only=True)
class Press:
    """A key pressed at `at`, on the clock that all processes share, and drawn after `seconds`."""

    at: float
    seconds: float


class TimedTerminal:
    """Runs `python -m MODULE ARGUMENTS`; a context that waits for the program's end."""

    def __init__(self, module: str, arguments: Sequence[str]) -> None:
        self._master, slave = pty.openpty()
        size = struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, size)
        self._program = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=os.environ | {"TERM": "xterm-256color"},
        )
        os.close(slave)
        self._ended = False
        self._tail = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        raised: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if raised is not None:
            self._program.kill()
        while not self._ended:
            self.drain(time.monotonic() + 1)
        os.close(self._master)
        if self._program.wait() and raised is None:
            raise RuntimeError(self._tail.decode(errors="replace"))

    def cpu_seconds(self) -> float:
        """Processor time that the program has taken, in its code and in the system's for it."""
        times = psutil.Process(self._program.pid).cpu_times()
        return float(times.user + times.system)

    def type(self, keys: str) -> bool:
        """Type what is drawn as it is; whether it was."""
        self._write(keys.encode())
        return self.drain(time.monotonic() + _PATIENCE, until=keys.encode())

    def press_keys(self, until: float) -> list[Press]:
        """Type letters and wait for each to be drawn, until a time or the program's end."""
        presses: list[Press] = []
        while time.monotonic() < until and not self._ended:
            self._write(_EMPTY_LINE)
            self.drain(time.monotonic() + _KEY_EVERY)
            self._write(_MARK.encode())
            self.drain(time.monotonic() + _KEY_EVERY)
            typed = _MARK
            for letter in _LETTERS:
                typed += letter
                began = time.monotonic()
                self._write(letter.encode())
                if not self.drain(began + _PATIENCE, until=typed[-3:].encode()):
                    break
                presses.append(Press(at=began, seconds=time.monotonic() - began))
                self.drain(began + _KEY_EVERY)
                if began > until:
                    break
        return presses

    def drain(self, deadline: float, until: bytes | None = None) -> bool:
        """Take output until the deadline, the end, or until something is drawn; whether it was."""
        since = b""
        while not self._ended and (left := deadline - time.monotonic()) > 0:
            if not select.select([self._master], [], [], left)[0]:
                break
            try:
                data = os.read(self._master, 1 << 16)
            except OSError:  # how a pseudo-terminal says that the program has ended
                self._ended = True
                break
            since = since[-64:] + data
            self._tail = (self._tail + data)[-_TAIL:]
            if until is not None and until in since:
                return True
        return False

    def _write(self, keys: bytes) -> None:
        try:
            os.write(self._master, keys)
        except OSError:
            self._ended = True


def quantile(presses: Sequence[Press], share: float) -> float:
    """Seconds that this share of the presses stays within; 0.0 for none."""
    seconds = sorted(press.seconds for press in presses)
    return seconds[int(share * (len(seconds) - 1))] if seconds else 0.0
