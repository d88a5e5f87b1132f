"""The chat in a real terminal: line by line (bars, Ctrl-C, Ctrl-D), and full screen."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from app import cli

ROOT = Path(cli.__file__).parent.parent
_SECONDS = 60
_SIZE = 36, 120
INTERRUPT, END, QUIT = b"\x03", b"\x04", b"\x11"


class Terminal:
    """A command on a pseudo-terminal, and all it has shown."""

    def __init__(self, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app", *arguments],
            cwd=ROOT,
            env=os.environ | {"TERM": "xterm-256color"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_own_terminal,
        )
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *_SIZE, 0, 0))
        os.close(slave)
        self.shown = ""

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def wait_for(self, text: str) -> None:
        """Read until `text` has been shown."""
        deadline = time.monotonic() + _SECONDS
        while text not in self.shown:
            if not self._read(deadline - time.monotonic()):
                pytest.fail(f"ended, or said nothing, before {text!r}: {self.shown}")

    def close(self) -> int:
        """Wait for the end; returns the exit code."""
        while self._read(_SECONDS):
            pass
        os.close(self._master)
        return self.process.wait(timeout=_SECONDS)

    def _read(self, seconds: float) -> bool:
        """Take what is shown within the time; False at the end, or if nothing is."""
        if not select.select([self._master], [], [], max(seconds, 0))[0]:
            return False
        try:
            data = os.read(self._master, 4096)
        except OSError:  # how a pseudo-terminal says that the other side has gone
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)


def _own_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_chat_answers_stops_and_ends(tiny_path: Path) -> None:
    window = ["--ctx", "1000000", "--beyond-context", "--max-tokens", "1000000"]
    terminal = Terminal("chat", "--plain", "-m", str(tiny_path), *window)
    terminal.wait_for("> ")
    terminal.type(b"ba ce di\n")
    time.sleep(1)
    terminal.type(INTERRUPT)
    terminal.wait_for(" tok/s · answer")
    terminal.type(b"/stats\n")
    terminal.wait_for("hot=")
    terminal.type(INTERRUPT)
    terminal.wait_for("Ctrl-D or /quit ends the chat")
    terminal.type(END)
    assert terminal.close() == 0
    assert "Traceback" not in terminal.shown
    assert "loading" in terminal.shown
    assert "reading" in terminal.shown


def test_a_bare_model_opens_the_full_screen(tiny_path: Path) -> None:
    terminal = Terminal(str(tiny_path))
    terminal.wait_for("KV cache")
    terminal.wait_for("/128")
    terminal.type(QUIT)
    assert terminal.close() == 0
    assert "Traceback" not in terminal.shown
