"""Progress bars on stderr, so that stdout carries answers and JSON alone.

Nothing is drawn where stderr is not a terminal.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from app.streams import styled


class Report(Protocol):
    """Takes how much is done of all, None where nobody knows, and of what, where that changes."""

    def __call__(self, done: int, total: int | None, label: str | None = None) -> None: ...


# Seconds that nobody waits for: a mapped file is loaded before.
_PATIENCE = 0.3


@contextmanager
def byte_bar(label: str) -> Iterator[Report]:
    """A bar over bytes; call the result with (done, total), total None if unknown.

    It appears where there is something to wait for.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with _bar(label, *columns, patience=_PATIENCE) as report:
        yield report


@contextmanager
def token_bar(label: str) -> Iterator[Report]:
    """A bar over tokens; call the result with (done, total)."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tokens"),
        TimeRemainingColumn(),
    )
    with _bar(label, *columns) as report:
        yield report


@contextmanager
def step_bar(label: str) -> Iterator[Report]:
    """A bar over steps, with the time they took; call the result with (done, total)."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with _bar(label, *columns) as report:
        yield report


@contextmanager
def load_bar() -> Iterator[Report]:
    """A bar over all that a load does, which has other labels on the way."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with _bar("loading", *columns, patience=_PATIENCE) as report:
        yield report


@contextmanager
def busy_bar(label: str) -> Iterator[None]:
    """A bar over something of unknown length, shown at once."""
    with _bar(label, TextColumn("{task.description}", markup=False), BarColumn()) as report:
        report(0, None)
        yield


@contextmanager
def _bar(label: str, *columns: ProgressColumn, patience: float = 0) -> Iterator[Report]:
    """A bar that appears with the first report, so that a step with nothing to do shows none.

    patience: seconds that must have passed before it does.
    """
    console = Console(file=styled(sys.stderr))
    draws = console.is_terminal and not console.is_dumb_terminal
    bar = Progress(*columns, console=console, transient=True, disable=not draws)
    task, began = bar.add_task(label, total=None), time.monotonic()

    def report(done: int, total: int | None, label: str | None = None) -> None:
        if total == bar.tasks[0].total:
            bar.update(task, completed=done, description=label)
        else:  # what was there before counts for no speed
            bar.reset(task, completed=done, total=total, description=label)
        if time.monotonic() >= began + patience:
            bar.start()

    try:
        yield report
    finally:
        bar.stop()
