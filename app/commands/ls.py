"""List models on this machine and those that can be pulled."""

import argparse
from typing import TYPE_CHECKING, Any

from app import cache_flags
from app.inert import inert_line
from app.streams import print_json

if TYPE_CHECKING:
    from app.model_list import Cost, ListedModel, Outlook

_Row = tuple["ListedModel", "Cost", "Outlook"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add this command's flags."""
    cache_flags.add_backend(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print them grouped by what this machine's memory can hold, those that are here first."""
    from app.console import note
    from models.finding.discover import without_files
    from models.finding.source import no_file

    for name, blob in without_files().items():
        note(f"{name} {no_file(name, blob)}")
    rows = _rows(args.backend)
    if args.json:
        print_json(
            {
                "found": [_found_json(*row) for row in rows if row[0].path is not None],
                "available": [_available_json(*row) for row in rows if row[0].path is None],
            }
        )
        return 0
    _print_grouped(rows)
    return 0


def _rows(backend: str) -> list[_Row]:
    """Every model with its cost, from headers where files are here."""
    from app.kernels import only_reference
    from app.memory import memory
    from app.model_list import cost_of, listed, outlook
    from app.progress import step_bar
    from kvcache import Backend

    here, rows, decoded = memory(), [], only_reference(Backend(backend))
    models = listed()
    with step_bar("reading headers") as report:
        for at, model in enumerate(models):
            report(at, len(models))
            cost = cost_of(model, decoded=decoded)
            rows.append((model, cost, outlook(cost, here)))
    return rows


def _print_grouped(rows: list[_Row]) -> None:
    from app.model_list import Room

    for room in Room:
        group = [row for row in rows if row[2].room is room]
        if group:
            print(room.value)
        for model, cost, outlook in group:
            size = " " * 9 if model.size is None else f"{model.size / 1e9:6.2f} GB"
            window = "" if outlook.window is None else f"{outlook.window:,} tokens"
            name, spec, about = (
                inert_line(each) for each in (cost.title, model.spec, _about(model, cost))
            )
            print(f"  {name:<42} {size}  {window:>14}  {spec:<18}  {about}")


def _about(model: "ListedModel", cost: "Cost") -> str:
    """Where a model is, or what the catalogue says of it; and why it cannot run."""
    about = f"to pull: {model.remark}" if model.path is None else model.about
    return f"{about}: {cost.problem}" if cost.problem else about


def _found_json(model: "ListedModel", cost: "Cost", outlook: "Outlook") -> dict[str, Any]:
    return {
        "name": model.spec,
        "title": cost.title,
        "bytes": model.size,
        "origin": model.about,
        "path": str(model.path),
        **_memory_json(cost, outlook),
    }


def _available_json(model: "ListedModel", cost: "Cost", outlook: "Outlook") -> dict[str, Any]:
    entry = model.entry
    assert entry is not None  # as of all that are not here
    return {
        "name": model.spec,
        "title": cost.title,
        "bytes": model.size,
        "about": model.about,
        "licence": entry.licence,
        "architecture": entry.architecture,
        "sha256": entry.sha256,
        "from": str(entry.hub),
        **_memory_json(cost, outlook),
    }


def _memory_json(cost: "Cost", outlook: "Outlook") -> dict[str, Any]:
    """window: tokens. The bytes of a token are those of the layers that see all."""
    return {
        "memory": outlook.room.value,
        "window": outlook.window,
        "token_bytes_f16": cost.token_bytes,
        "token_bytes_cold": cost.cold_bytes,
        "window_layers_bytes": cost.window_bytes,
        "weight_bytes": cost.weight_bytes,
        **({"problem": cost.problem} if cost.problem else {}),
    }
