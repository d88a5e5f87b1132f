"""Rows that are made up."""

from dataclasses import fields, replace
from typing import Any

from app.bench.sections.all import SECTIONS
from app.bench.showing.view import View

VIEWS: list[View[Any]] = [section.view for section in SECTIONS.values()]


def example(view: View[Any]) -> Any:
    """A row with something in every field."""
    values = {"str": "a", "int": 7, "float": 0.5, "bool": True}
    values |= {"int | None": 7, "float | None": 0.5, "dict[str, float]": {"a 1, b on": 0.5}}
    kinds = {
        field.name: field.type.__name__
        if field.type in (str, int, float, bool)
        else str(field.type)
        for field in fields(view.row)
    }
    return view.row(**{name: values[kind] for name, kind in kinds.items()})


def speed_row(kv: str, tps: float, **more: Any) -> dict[str, Any]:
    view = SECTIONS["speed"].view
    row = replace(example(view), kv=kv, tps=tps, tps_sd=1.0, **more)
    return view.as_json([row])[0]
