"""The JSON object that every section prints, and the folder that `--out` fills.

Reading and writing only; what rows mean, their views know.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app import texts
from app.bench.showing.svg import draw
from app.bench.showing.table import to_markdown
from app.bench.showing.view import View
from kvcache.errors import EmberError, reason

SCHEMA = 1


def document(
    rows: Sequence[dict[str, Any]], environment: dict[str, Any], views: Sequence[View[Any]]
) -> dict[str, Any]:
    """Rows as JSON has them, and what the views of their sections say of them."""
    shown = {view: mine for view in views if (mine := view.from_json(rows))}
    return {
        "schema": SCHEMA,
        "env": environment,
        "rows": list(rows),
        "findings": {view.name: view.findings(mine) for view, mine in shown.items()},
        "verdicts": [
            {"section": view.name, **asdict(verdict)}
            for view, mine in shown.items()
            for verdict in view.verdicts(mine)
        ],
    }


def read(path: Path) -> dict[str, Any]:
    """A document from a file. Raises EmberError for anything else."""
    try:
        found = json.loads(texts.read_file(path, "the results"))
    except (ValueError, RecursionError) as error:
        raise EmberError(f"cannot read the results {path}: {error}") from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or not _is_document(found):
        raise EmberError(f"{path} holds no results of bench (schema {SCHEMA})")
    return found


def _is_document(found: dict[str, Any]) -> bool:
    rows = found.get("rows")
    rows_are = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    return rows_are and isinstance(found.get("env"), dict)


def write(folder: Path, view: View[Any], found: dict[str, Any]) -> list[Path]:
    """One section's JSON, Markdown and charts; returns the files. Raises EmberError.

    What the figures say is said anew, by this version.
    """
    found = document(found["rows"], found["env"], [view])
    rows = view.from_json(found["rows"])
    files = {f"{view.name}.json": json.dumps(found, indent=1, ensure_ascii=False) + "\n"}
    charts = view.charts(rows) if rows else []
    charts = [chart for chart in charts if any(series.points for series in chart.series)]
    files |= {f"{chart.name}.svg": draw(chart) for chart in charts}
    pictures = [f"![{chart.title}]({chart.name}.svg)" for chart in charts]
    files[f"{view.name}.md"] = _markdown(view, rows, pictures, found["env"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise EmberError(
            f"cannot write the results to {folder}: {reason(error)}; name another --out"
        ) from error
    return [folder / name for name in files]


def _markdown(
    view: View[Any], rows: Sequence[Any], pictures: Sequence[str], environment: dict[str, Any]
) -> str:
    parts = [f"# {view.title}", *(f"- {finding}" for finding in view.findings(rows))]
    for table in view.tables(rows):
        parts += ["", f"## {table.title}", to_markdown(table)]
    parts += ["", *pictures, "", "## Measured on", _environment(environment)]
    return "\n".join(parts) + "\n"


def _environment(environment: dict[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in environment.items())
