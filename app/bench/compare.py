"""`bench compare A.json B.json`: what changed between two results, row by row."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.bench.sections.all import SECTIONS
from app.bench.showing.document import read
from app.bench.showing.table import Stdout, Table, for_terminal, print_line
from app.bench.showing.view import Measure, View
from app.bench.showing.words import percent, short

# Where no spread was measured, less than this is noise.
_NOISE = 0.02
_UNEVENTFUL = ("settings", "commit")


@dataclass(frozen=True, kw_only=True)
class Change:
    """A figure of a row that both results have. better: None where it is within the noise."""

    row: str
    field: str
    before: float
    after: float
    better: bool | None

    @property
    def share(self) -> float:
        """Relative to before; infinite from zero."""
        if not self.before:
            return float("inf") if self.after else 0.0
        return self.after / self.before - 1


def show(before: Path, after: Path) -> int:
    """Print what changed; returns the exit code. Raises EmberError for other files."""
    first, second = read(before), read(after)
    console = Stdout()
    lines = surroundings(first["env"], second["env"])
    lines += [*_unnamed(before, first["rows"]), *_unnamed(after, second["rows"])]
    for line in lines:
        print_line(console, line)
    shown = False
    for section in SECTIONS.values():
        found = list(changes(section.view, first["rows"], second["rows"]))
        if found:
            shown = True
            told = table(section.view, found)
            if told.rows:
                console.print(for_terminal(told))
            else:
                print_line(console, f"{told.title}: {told.note}")
        for line in missing(section.view, first["rows"], second["rows"]):
            print_line(console, line)
    if not shown:
        console.print("no row is in both results")
    return 0


def surroundings(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What else differs: machine and versions."""
    names = [name for name in before | after if name not in _UNEVENTFUL]
    return [
        f"{name}: {before.get(name, '-')} before, {after.get(name, '-')} after"
        for name in names
        if before.get(name) != after.get(name)
    ]


def changes(
    view: View[Any], before: list[dict[str, Any]], after: list[dict[str, Any]]
) -> Iterator[Change]:
    """Of every row in both, each followed figure that is a number in both."""
    old = _by_identity(view, before)
    for identity, row in _by_identity(view, after).items():
        if identity not in old:
            continue
        for measure in view.measures:
            was, now = _figure(old[identity], measure.field), _figure(row, measure.field)
            if was is not None and now is not None:
                yield Change(
                    row=" ".join(map(str, identity)),
                    field=measure.field,
                    before=was,
                    after=now,
                    better=_better(measure, was, now, _noise(measure, old[identity], row)),
                )


def missing(
    view: View[Any], before: list[dict[str, Any]], after: list[dict[str, Any]]
) -> list[str]:
    """Rows of one result only."""
    old, new = _by_identity(view, before), _by_identity(view, after)
    if not old or not new:
        return []
    gone = [f"only before: {view.name} {' '.join(map(str, i))}" for i in old if i not in new]
    return gone + [f"only after: {view.name} {' '.join(map(str, i))}" for i in new if i not in old]


def _figure(row: dict[str, Any], field: str) -> float | None:
    """A number of a row; None where it has none, or one that is not finite."""
    found = row.get(field)
    is_number = isinstance(found, int | float) and abs(found) <= sys.float_info.max
    return found if is_number else None


def _noise(measure: Measure, before: dict[str, Any], after: dict[str, Any]) -> float:
    """Two standard deviations of the wider row; zero where no spread was measured."""
    spreads = (_figure(row, measure.spread) for row in (before, after))
    return max(2 * (spread or 0) for spread in spreads)


def _better(measure: Measure, was: float, now: float, noise: float) -> bool | None:
    """Whether the change is an improvement; None within the noise or 2%."""
    if abs(now - was) <= max(noise, _NOISE * abs(was)):
        return None
    return (now > was) == measure.more_is_better


def _by_identity(view: View[Any], rows: list[dict[str, Any]]) -> dict[tuple[Any, ...], Any]:
    mine = (row for row in rows if row.get("section") == view.name and _is_named(view, row))
    return {tuple(row[name] for name in view.identity): row for row in mine}


def _is_named(view: View[Any], row: dict[str, Any]) -> bool:
    """Whether a row has all that tells it from others."""
    return all(isinstance(row.get(name), str | int | float) for name in view.identity)


def _unnamed(path: Path, rows: list[dict[str, Any]]) -> list[str]:
    """A line for each section with rows that cannot be told from others."""
    views = [section.view for section in SECTIONS.values()]
    counts = {
        view: sum(row.get("section") == view.name and not _is_named(view, row) for row in rows)
        for view in views
    }
    return [
        f"{path}: {count} rows of {view.name} without all of {', '.join(view.identity)}: "
        "not compared"
        for view, count in counts.items()
        if count
    ]


def table(view: View[Any], found: list[Change]) -> Table:
    """The changes beyond the noise, and how many are not."""
    loud = [change for change in found if change.better is not None]
    return Table(
        title=view.title,
        columns=("row", "figure", "before", "after", "change", ""),
        texts=2,
        rows=[
            (
                change.row,
                change.field,
                short(change.before),
                short(change.after),
                percent(change.share),
                "better" if change.better else "worse",
            )
            for change in loud
        ],
        note=f"{len(found) - len(loud)} other figures: within two standard deviations, or 2%.",
    )
