"""The JSON Schema of what `bench` prints, made from the sections' row classes.

`python -m app.bench.schema` writes schema.json beside this file; a test holds the
file to the classes, and what sections print to the file.
"""

import json
import types
import typing
from dataclasses import fields
from pathlib import Path
from typing import Any, Union

from app.bench.document import SCHEMA
from app.bench.sections import SECTIONS

FILE = Path(__file__).with_name("schema.json")
_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def make() -> dict[str, Any]:
    """The schema."""
    definitions = {name: _row(name, section.view.row) for name, section in SECTIONS.items()}
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
        },
        "$defs": definitions,
    }


def text() -> str:
    """The file's text."""
    return json.dumps(make(), indent=1) + "\n"


def _row(name: str, row: type[Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(row)
    names = [field.name for field in fields(row)]
    return {
        "type": "object",
        "required": ["section", *names],
        "additionalProperties": False,
        "properties": {
            "section": {"const": name},
            **{field: {"type": _json_type(hints[field])} for field in names},
        },
    }


def _json_type(hint: Any) -> str | list[str]:
    if typing.get_origin(hint) in (Union, types.UnionType):
        return [_TYPES[part] for part in typing.get_args(hint)]
    return _TYPES[hint]


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
