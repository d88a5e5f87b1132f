"""Progress of measurements on stderr: what runs now, and the time left.

Steps come with the seconds that they are expected to take; how long the finished
ones really took corrects the rest.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from app.console import note
from app.inert import inert_line
from app.streams import styled


class Clock:
    """Expected and real seconds of the steps so far; knows no terminal."""

    def __init__(self, expected: float) -> None:
        self._expected = max(expected, 1e-9)
        self._done = 0.0
        self._spent = 0.0
        self._step = 0.0
        self._began = time.perf_counter()

    def begin(self, seconds: float) -> None:
        """A step of so many expected seconds begins."""
        self._step, self._began = seconds, time.perf_counter()

    def end(self) -> None:
        """It is done."""
        self._spent += time.perf_counter() - self._began
        self._done += self._step
        self._step = 0.0

    @property
    def share(self) -> float:
        """How much is done, 0 to 1; the running step counts by its time."""
        return min(0.999, (self._done + self._running()) / self._expected)

    @property
    def left(self) -> float:
        """Seconds to the end, at the pace so far."""
        # A little trust in the expectation keeps the first steps from swinging it.
        trust = 0.05 * self._expected
        pace = (self._spent + trust) / (self._done + trust)
        return max(0.0, self._expected - self._done - self._running()) * pace

    def _running(self) -> float:
        if not self._step:
            return 0.0
        return min(self._step, time.perf_counter() - self._began)


class Meter:
    """A bar where stderr is a terminal, a line for each step where it is not."""

    def __init__(self, expected: float) -> None:
        self._clock = Clock(expected)
        console = Console(file=styled(sys.stderr))
        self._quiet = not console.is_terminal
        self._bar = Progress(
            BarColumn(bar_width=30),
            _TimeLeft(self._clock),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
            disable=self._quiet,
        )
        self._task = self._bar.add_task("", total=1.0)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    @contextmanager
    def step(self, label: str, seconds: float) -> Iterator[None]:
        """One step of so many expected seconds."""
        if self._quiet:
            note(label)
        self._bar.update(self._task, description=inert_line(label))
        self._clock.begin(seconds)
        yield
        self._clock.end()
        self._bar.update(self._task, completed=self._clock.share)


class _TimeLeft(ProgressColumn):
    """Also moves the bar inside a step."""

    max_refresh = 0.5

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def render(self, task: Task) -> Text:
        """The time left."""
        task.completed = self._clock.share
        return Text(f"{duration(self._clock.left)} left", style="progress.remaining")


def duration(seconds: float) -> str:
    """As people say it: 40 s, 12 min, 1 h 5 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
