"""Runs sections one after another and hands their rows out: terminal, JSON, folder.

Ctrl-C ends the measuring; rows that are finished are shown and written all the same.
So they are where a section fails, and the next one runs.
"""

from collections.abc import Sequence
from dataclasses import asdict
from enum import IntEnum
from pathlib import Path
from typing import Any

from app.bench.environment import device, environment
from app.bench.meter import Meter, duration
from app.bench.sections.all import Section
from app.bench.showing.document import document, write
from app.bench.showing.table import Stdout, for_terminal, print_line
from app.console import note
from app.streams import print_json
from kvcache.errors import EmberError

Job = tuple[Section, Any]  # a section and its settings


class _Ended(IntEnum):
    """How it ended; the values are exit codes."""

    FINISHED = 0
    FAILED = 1
    INTERRUPTED = 130


def measure(jobs: Sequence[Job], *, out: Path | None, as_json: bool) -> int:
    """Run the jobs and report; returns the exit code."""
    expected = sum(section.seconds(settings) for section, settings in jobs)
    note(f"this takes about {duration(expected)} on two CPU cores; Ctrl-C keeps finished rows")
    documents: list[tuple[Section, dict[str, Any]]] = []
    surroundings = environment() | device()
    ended = _Ended.FINISHED
    with Meter(expected) as meter:
        for section, settings in jobs:
            rows, how = _rows(section, settings, meter, alone=len(jobs) == 1)
            told = surroundings | _settings(settings) | section.surroundings(settings)
            found = document(section.view.as_json(rows), told, [section.view])
            documents.append((section, found))
            # At once, so that hours are not lost with the machine.
            if out is not None and rows:
                write(out, section.view, found)
            ended = max(ended, how)
            if how is _Ended.INTERRUPTED:
                break
    if as_json:
        print_json(_joined(documents))
    else:
        for section, found in documents:
            _show(section, found)
    if out is not None:
        note(f"written to {out}")
    if ended is _Ended.INTERRUPTED:
        note("interrupted: what is shown was finished")
    return ended.value


def _rows(
    section: Section, settings: Any, meter: Meter, *, alone: bool
) -> tuple[list[Any], _Ended]:
    """All rows, or those before an interrupt or an error; alone, an error is raised."""
    rows: list[Any] = []
    try:
        rows.extend(section.run(settings, meter))
    except KeyboardInterrupt:
        return rows, _Ended.INTERRUPTED
    except EmberError as error:
        if alone and not rows:
            raise
        note(f"error: {section.view.name}: {error}")
        return rows, _Ended.FAILED
    return rows, _Ended.FINISHED


def _settings(settings: Any) -> dict[str, Any]:
    """As the environment block has them; the model without its folder."""
    return {"settings": asdict(settings) | {"model": Path(settings.model).stem}}


def _joined(documents: Sequence[tuple[Section, dict[str, Any]]]) -> dict[str, Any]:
    """One document of all sections; settings by section where there are several."""
    if len(documents) == 1:
        return documents[0][1]
    rows = [row for _, found in documents for row in found["rows"]]
    told: dict[str, Any] = {}
    for _, found in documents:
        told |= found["env"]
    settings = {section.view.name: found["env"]["settings"] for section, found in documents}
    views = [section.view for section, _ in documents]
    return document(rows, told | {"settings": settings}, views)


def _show(section: Section, found: dict[str, Any]) -> None:
    console = Stdout()
    rows = section.view.from_json(found["rows"])
    console.rule(section.view.title, align="left")
    if not rows:
        console.print("nothing was measured")
        return
    for table in section.view.tables(rows):
        console.print(for_terminal(table))
    for finding in section.view.findings(rows):
        print_line(console, f"- {finding}")
    told = (f"{name} {value}" for name, value in found["env"].items() if name != "settings")
    print_line(console, ", ".join(told), style="dim")
