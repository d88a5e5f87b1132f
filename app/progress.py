"""Progress bars on stderr, so that stdout carries answers and JSON alone.

Nothing is drawn where stderr is not a terminal.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

Report = Callable[[int, int | None], None]


@contextmanager
def byte_bar(label: str) -> Iterator[Report]:
    """A bar over bytes; call the result with (done, total), total None if unknown."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
    )
    with _bar(label, *columns) as report:
        yield report


@contextmanager
def token_bar(label: str) -> Iterator[Report]:
    """A bar over tokens; call the result with (done, total)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:.0f} tokens"),
        TimeRemainingColumn(),
    )
    with _bar(label, *columns) as report:
        yield report


@contextmanager
def _bar(label: str, *columns: ProgressColumn) -> Iterator[Report]:
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(label, total=None)

        def report(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield report
