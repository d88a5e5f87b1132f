"""Programs that run side by side, and do not outlive this one.

Does not know what they are for.
"""

import atexit
import os
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

_ASK_SECONDS = 0.1

Ended = subprocess.CompletedProcess[str]


def run(
    commands: Sequence[list[str]],
    go_on: Callable[[], None],
    *,
    group: bool,
    scratch: Path | None = None,
) -> list[Ended]:
    """Run programs to their ends, one more at a time than there are processors, in this order.

    go_on: called again and again; what it raises ends them all. group: each in a group of its
    own, so that Ctrl-C is ours to act on. scratch: where they put what they need for a moment.
    Raises OSError where one cannot be run, or this program ends.
    """
    waiting, running = deque(enumerate(commands)), dict[int, subprocess.Popen[str]]()
    done: dict[int, Ended] = {}
    # So that no processor is idle while the last ones run, or before an end is noticed.
    most = (os.cpu_count() or 1) + 1
    with ExitStack() as stack:
        while waiting or running:
            while waiting and len(running) < most:
                number, command = waiting.popleft()
                running[number] = stack.enter_context(_running(command, scratch, group=group))
            go_on()
            for number, process in [*running.items()]:
                if (ended := _ended(process, _ASK_SECONDS / len(running))) is not None:
                    done[number] = ended
                    del running[number]
    return [done[number] for number in range(len(commands))]


class _Running:
    """All programs that run. Once this one ends, it has ended them, and none begins.

    What they put beside their work goes too. Who runs them may be a thread that nobody waits for,
    and that goes on meanwhile.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # How each is ended, and where it puts what it needs for a moment.
        self._ends: dict[Callable[[], None], Path | None] | None = {}
        atexit.register(self.end_all)

    def start(
        self, command: list[str], scratch: Path | None, *, group: bool
    ) -> tuple[subprocess.Popen[str], Callable[[], None]]:
        with self._lock:
            if self._ends is None:
                raise OSError("this program ends")
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ if scratch is None else os.environ | {"TMPDIR": str(scratch)},
                start_new_session=group,
            )
            end = partial(_kill, process, group=group)
            self._ends[end] = scratch
            return process, end

    def forget(self, end: Callable[[], None]) -> None:
        with self._lock:
            if self._ends is not None:
                self._ends.pop(end, None)

    def end_all(self) -> None:
        """For good."""
        with self._lock:
            ends, self._ends = self._ends or {}, None
            for end in ends:
                end()
            for scratch in {each for each in ends.values() if each is not None}:
                shutil.rmtree(scratch, ignore_errors=True)


_ALL = _Running()


def end_all() -> None:
    """End all that run, and begin none any more; Python's own end does it by itself."""
    _ALL.end_all()


@contextmanager
def _running(
    command: list[str], scratch: Path | None, *, group: bool
) -> Iterator[subprocess.Popen[str]]:
    process, end = _ALL.start(command, scratch, group=group)
    try:
        yield process
    finally:
        end()
        process.communicate()
        _ALL.forget(end)


def _ended(process: subprocess.Popen[str], seconds: float) -> Ended | None:
    """What became of a program, if it ends within a time."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _kill(process: subprocess.Popen[str], *, group: bool) -> None:
    """End a program; with its group, those that it has started too."""
    if process.poll() is not None:
        return
    if group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
