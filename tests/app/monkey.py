"""Random misuse of the full-screen chat: `python -m tests.app.monkey MODEL [SEED ...]`.

Keys, mouse, junk bytes, pastes, odd commands, sizes and interrupts, in an order that the
seed decides. Whatever comes, no traceback may be shown, and the chat must end with 0.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from random import Random

from app.tui.commands import COMMANDS
from tests.app.terminal import INTERRUPT, QUIT, Terminal

_KEYS = (
    *(b"\x1bOP", b"\x1bOQ", b"\x1bOR", b"\x1bOS", b"\x1b[15~"),  # F1 to F5
    *(b"\x1b[A", b"\x1b[B", b"\x1b[C", b"\x1b[D", b"\x1b[5~", b"\x1b[6~", b"\x1b[H", b"\x1b[F"),
    *(b"\x0f", b"\x0c", b"\x10", b"\x0e", b"\x12", b"\x19", b"\x1b", b"\t", b"\x1b[Z"),
    *(b"\r", b"\n", b"\x7f", b"\x01", b"\x05", b"\x0b", b"\x15", b"\x17", b"\x18", b"\x1b[1;5F"),
)
# What ends the chat, stops its process or sends a signal is no accident.
_ENDS = b"\x03\x04\x11\x1a\x1c"
_BROKEN = (b"\x1b[", b"\x1b[9", b"\x1b]", b"\x1bP", b"\x1b_x", b"\x1b[200~", b"\x1b[201~")
_PASTES = (
    b"x" * 1_000_000,
    "word \u00e9\u4e2d\U0001f600 ".encode() * 9_000,
    b"\x1b[201~\r/quit\r" * 9,
    b"\x1b]0;title\x07\x1b[2J[bold]markup[/]\r\n" * 99,
)
_ARGUMENTS = (
    *("", "x", "-1", "0", "nan", "1e999", "clear", "None", "../..", "/dev/zero", "/", "~", "@"),
    *("temp 9", "temp", "top_p nan", "theme nord", "max_tokens 0", "[bold]x", "\u202e", "x" * 3000),
)
# These write files.
_SPARED = ("quit", "export", "screenshot")
_QUESTIONS = (b"hi\r", b"@/etc/passwd what\r", b"@/dev/zero\r", b"```\r", b"/", b"//\r", b"@")
_COLUMNS, _ROWS = (1, 2, 10, 59, 60, 80, 120, 400), (1, 2, 5, 19, 20, 24, 36, 100)


class Monkey:
    """Does something at random, again and again."""

    def __init__(self, terminal: Terminal, seed: int) -> None:
        self._terminal, self._random = terminal, Random(seed)

    def play(self, steps: int) -> None:
        """So many steps, or fewer if one of them ends the chat."""
        pick = self._random.choice
        means: Sequence[Callable[[], bytes]] = (
            lambda: pick(_KEYS),
            lambda: pick(_KEYS),
            self._mouse,
            self._junk,
            lambda: b"\x1b[200~" + pick(_PASTES) + b"\x1b[201~",
            self._command,
            self._command,
            lambda: pick(_QUESTIONS),
            lambda: pick(_BROKEN),
            lambda: INTERRUPT,
            self._resize,
        )
        for _ in range(steps):
            self._terminal.type(pick(means)())
            self._terminal.read_for(pick((0, 0.02, 0.3)))

    def _mouse(self) -> bytes:
        button = self._random.choice((0, 1, 2, 4, 8, 16, 32, 64, 65))
        at = f"{self._random.randint(1, 130)};{self._random.randint(1, 40)}"
        return f"\x1b[<{button};{at}{self._random.choice('Mm')}".encode()

    def _junk(self) -> bytes:
        junk = self._random.randbytes(self._random.randint(1, 60))
        return junk.translate(None, _ENDS)

    def _command(self) -> bytes:
        name = self._random.choice([each.name for each in COMMANDS if each.name not in _SPARED])
        return f"/{name} {self._random.choice(_ARGUMENTS)}\r".encode()

    def _resize(self) -> bytes:
        self._terminal.resize(self._random.choice(_COLUMNS), self._random.choice(_ROWS))
        return b""


ENDED = (0, 130)


def misuse(model: str, *options: str, seed: int, steps: int) -> tuple[int, str]:
    """How the chat ended, and all it had shown.

    Ended by itself: 0, or 130 where a Ctrl-C came after it had given the terminal back.
    """
    with tempfile.TemporaryDirectory() as folder:
        folders = dict.fromkeys(("XDG_DATA_HOME", "XDG_CONFIG_HOME"), folder)
        terminal = Terminal("chat", "-m", model, *options, environment=folders)
        terminal.wait_for("Ask anything")
        Monkey(terminal, seed).play(steps)
        # Out of a paste or a sequence that was left open, then out of whatever is open.
        for keys in (b"\x1b[201~", *[b"\x1b"] * 6, QUIT):
            terminal.type(keys)
            terminal.read_for(0.5)
        return terminal.close(), terminal.shown


def main(model: str, *seeds: str) -> int:
    """Play each seed; 1 if any of them went wrong."""
    failures = 0
    for seed in seeds or map(str, range(10)):
        status, shown = misuse(model, "--ctx", "1024", seed=int(seed), steps=100)
        wrong = status not in ENDED or "Traceback" in shown
        failures += wrong
        print(f"seed {seed}: exit {status}{', a traceback' * ('Traceback' in shown)}", flush=True)
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
