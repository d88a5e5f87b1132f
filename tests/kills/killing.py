"""Starts a stage again and again in one home, ends each run at a random moment, and looks."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from random import Random
from tempfile import TemporaryFile
from threading import Thread
from typing import IO

from tests.app.terminal import ROOT, hear_signals
from tests.kills.stages import ASKS, STAGES, Place, Stage, age, strays

# How a run counts that was done before its signal, or took it for the end of what it is told.
WELL = "ended well"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_WAIT_SECONDS = 180.0


@dataclass(kw_only=True)
class Killing:
    """One stage in one place. killed: by which signals, and how many runs ended well all the same.

    runs: so far. confirmed: lines of all runs that were answered.
    """

    at: Place
    name: str
    killed: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    confirmed: list[str] = field(default_factory=list)

    @property
    def stage(self) -> Stage:
        """What runs."""
        return STAGES[self.name]

    def run(self, kills: int, rng: Random) -> None:
        """Raises AssertionError for a run that fails, and for what is lost, half or left."""
        self._whole()  # the first makes what later ones find
        seconds = self._whole()
        for number in range(kills):
            kind = SIGNALS[number % len(SIGNALS)]
            self._end(kind, rng.uniform(0, seconds))
            self.stage.holds(self.at, self.confirmed)
        begun = strays(self.at)
        age(begun)
        self._whole()
        left = [path for path in begun if path.exists()]
        assert not left, f"{self.name}: left behind for ever: {left}"

    def _whole(self) -> float:
        """The seconds of a run that nothing ends before its time."""
        if self.stage.after:
            Killing(at=self.at, name=self.stage.after)._whole()
        began = time.monotonic()
        with self._started() as (process, stderr):
            if not self.stage.ends:
                _wait_for(process, stderr, b"/v1")
                process.terminate()
            code = process.wait(_WAIT_SECONDS)
            taken = time.monotonic() - began
            expected = 0 if self.stage.ends else 128 + signal.SIGTERM
            assert code == expected, (self.name, code, _text(stderr))
        self.stage.holds(self.at, self.confirmed)
        return taken

    def _end(self, kind: signal.Signals, moment: float) -> None:
        with self._started() as (process, stderr):
            with suppress(subprocess.TimeoutExpired):
                process.wait(moment)
            process.send_signal(kind)
            code = process.wait(_WAIT_SECONDS)
            # Before Python has begun, nobody hears a signal.
            expected = (0, -kind, 128 + kind)
            assert code in expected, (self.name, kind, moment, code, _text(stderr))
            self.killed[kind.name if code else WELL] += 1

    @contextmanager
    def _started(self) -> "Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]":
        if self.stage.compiles:
            for library in self.at.kernels.glob("*.so"):
                library.unlink()
        with TemporaryFile() as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "app", *self.stage.arguments(self.at)],
                cwd=ROOT,
                env=dict(self.at.environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                preexec_fn=hear_signals,
            )
            self.runs += 1
            talk = Thread(target=self._talk, args=(process,))
            talk.start()
            try:
                yield process, stderr
            finally:
                process.kill()
                process.wait()
                talk.join()

    def _talk(self, process: "subprocess.Popen[bytes]") -> None:
        """Say each line once it is asked for, and read to the end."""
        assert process.stdin is not None
        assert process.stdout is not None
        out, shown, said = process.stdout, b"", list[str]()
        with suppress(BrokenPipeError), process.stdin as stdin:
            for number in range(self.stage.says):
                while shown.count(ASKS) <= number:
                    if not (more := os.read(out.fileno(), 1 << 16)):
                        return
                    shown += more
                # Who asks for the next has answered the one before.
                self.confirmed += said[-1:]
                said.append(f"{self.name} {self.runs} {number}")
                stdin.write(f"{said[-1]}\n".encode())
                stdin.flush()
        out.read()


def _wait_for(process: "subprocess.Popen[bytes]", stderr: IO[bytes], word: bytes) -> None:
    until = time.monotonic() + _WAIT_SECONDS
    while word not in _text(stderr).encode():
        assert process.poll() is None, _text(stderr)
        assert time.monotonic() < until, _text(stderr)
        time.sleep(0.05)


def _text(file: IO[bytes]) -> str:
    return os.pread(file.fileno(), 1 << 16, 0).decode(errors="replace")
