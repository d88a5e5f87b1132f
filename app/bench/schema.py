"""The JSON Schema of what `bench` prints, made from the sections' row classes.

`python -m app.bench.schema` writes schema.json beside this file; a test holds the
file to the classes, and what sections print to the file.
"""

import json
import types
import typing
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Union

from app.bench.sections.all import SECTIONS
from app.bench.showing.document import SCHEMA
from app.bench.showing.view import Ruling, Verdict

FILE = Path(__file__).with_name("schema.json")
_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def make() -> dict[str, Any]:
    """The schema."""
    definitions = {
        name: object_of(section.view.row, {"const": name}) for name, section in SECTIONS.items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Results of ember bench",
        "type": "object",
        "required": ["schema", "env", "rows"],
        "additionalProperties": False,
        "properties": {
            "schema": {"const": SCHEMA},
            "env": {
                "type": "object",
                "required": ["processor", "cores", "system", "python", "ember", "mlx", "settings"],
            },
            "rows": {
                "type": "array",
                "items": {"oneOf": [{"$ref": f"#/$defs/{name}"} for name in definitions]},
            },
            # Absent from results of earlier versions.
            "findings": {
                "type": "object",
                "propertyNames": {"enum": list(SECTIONS)},
                "additionalProperties": {"type": "array", "items": {"type": "string"}},
            },
            "verdicts": {"type": "array", "items": _verdict()},
        },
        "$defs": definitions,
    }


def text() -> str:
    """The file's text."""
    return json.dumps(make(), indent=1) + "\n"


def _verdict() -> dict[str, Any]:
    made = object_of(Verdict, {"enum": list(SECTIONS)})
    made["properties"]["ruling"] = {"enum": [ruling.value for ruling in Ruling]}
    return made


def object_of(row: type[Any], section: dict[str, Any]) -> dict[str, Any]:
    """Of a dataclass. A field with a default came later than the first results."""
    hints = typing.get_type_hints(row)
    needed = [
        field.name
        for field in fields(row)
        if field.default is MISSING and field.default_factory is MISSING
    ]
    return {
        "type": "object",
        "required": ["section", *needed],
        "additionalProperties": False,
        "properties": {
            "section": section,
            **{field.name: _json_type(hints[field.name]) for field in fields(row)},
        },
    }


def _json_type(hint: Any) -> dict[str, Any]:
    if hint == dict[str, float]:
        return {"type": "object", "additionalProperties": {"type": "number"}}
    if typing.get_origin(hint) in (Union, types.UnionType):
        return {"type": [_TYPES[part] for part in typing.get_args(hint)]}
    return {"type": _TYPES[hint]}


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
