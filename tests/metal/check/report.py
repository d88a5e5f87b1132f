"""What was done so far: a JSON file that is written as it goes, and Markdown to paste."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx

from app.bench.environment import environment
from app.bench.schema import object_of
from app.bench.showing.table import Table, to_markdown
from tests.metal.check import tables
from tests.metal.check.rows import (
    AttentionRow,
    BandwidthRow,
    CorrectnessRow,
    EncodingRow,
    KernelRow,
    ProductRow,
    Row,
    TokensRow,
)

SCHEMA = 1
ROWS: dict[str, type[Row]] = {
    "correctness": CorrectnessRow,
    "bandwidth": BandwidthRow,
    "kernels": KernelRow,
    "products": ProductRow,
    "attention": AttentionRow,
    "encoding": EncodingRow,
    "tokens": TokensRow,
}


@dataclass(kw_only=True)
class Report:
    """rows: by section, in the order they came. notes: what is to be said of a section.

    interrupted: before all sections were done.
    """

    file: Path
    rows: dict[str, list[Row]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    interrupted: bool = False

    @cached_property
    def env(self) -> dict[str, Any]:
        """The machine and the versions."""
        return environment() | _device()

    def document(self) -> dict[str, Any]:
        """As the file has it."""
        return {
            "schema": SCHEMA,
            "env": self.env,
            "interrupted": self.interrupted,
            "rows": [
                {"section": section, **asdict(row)}
                for section, rows in self.rows.items()
                for row in rows
            ],
            "notes": self.notes,
            "seconds": self.seconds,
        }

    def write(self) -> None:
        """The file, whole at any time."""
        staged = self.file.with_suffix(".part")
        staged.write_text(json.dumps(self.document(), indent=1) + "\n", encoding="utf-8")
        staged.replace(self.file)

    def tell_of_tokens(self, note: str) -> None:
        """One more thing to be said of this section."""
        said = self.notes.get("tokens")
        self.notes["tokens"] = f"{said}; {note}" if said else note

    def markdown(self) -> str:
        """The machine, a table for each section that has rows, and the notes."""
        found = [table for name, rows in self.rows.items() if rows for table in _tables(name, rows)]
        parts = [_machine(self.env)]
        for table in found:
            parts += [f"**{table.title}**", to_markdown(table)]
        parts += [f"{section}: {note}" for section, note in self.notes.items()]
        if self.interrupted:
            parts.append("Interrupted: the sections above are all there is.")
        return "\n\n".join(parts) + "\n"

    @property
    def wrong(self) -> int:
        """Cases that are."""
        rows = self.rows.get("correctness", ())
        return sum(isinstance(row, CorrectnessRow) and not row.right for row in rows)


def schema() -> dict[str, Any]:
    """JSON Schema of the file, made of the row classes."""
    definitions = {name: object_of(row, {"const": name}) for name, row in ROWS.items()}
    by_section = {"type": "object", "propertyNames": {"enum": list(ROWS)}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Results of make metal-check",
        "type": "object",
        "required": ["schema", "env", "interrupted", "rows", "notes", "seconds"],
        "additionalProperties": False,
        "properties": {
            "schema": {"const": SCHEMA},
            "env": {
                "type": "object",
                "required": ["processor", "system", "os", "python", "ember", "mlx", "device"],
            },
            "interrupted": {"type": "boolean"},
            "rows": {
                "type": "array",
                "items": {"oneOf": [{"$ref": f"#/$defs/{name}"} for name in definitions]},
            },
            "notes": {**by_section, "additionalProperties": {"type": "string"}},
            "seconds": {**by_section, "additionalProperties": {"type": "number"}},
        },
        "$defs": definitions,
    }


def _device() -> dict[str, Any]:
    """What MLX says of the GPU, and the system's version."""
    told: dict[str, Any] = dict(mx.device_info())
    names = ("architecture", "memory_size", "max_recommended_working_set_size")
    release = platform.mac_ver()[0]
    return {
        "device": str(told.get("device_name", "unnamed")),
        "os": f"macOS {release}" if release else platform.platform(),
        **{name: told[name] for name in names if name in told},
    }


def _machine(env: dict[str, Any]) -> str:
    gpu = f"{env['device']} ({env.get('architecture', 'no architecture told')})"
    commit = f", commit {env['commit']}" if "commit" in env else ""
    return f"{gpu}, {env['processor']}, {env['os']}, mlx {env['mlx']}, ember {env['ember']}{commit}"


def _tables(section: str, rows: Sequence[Any]) -> list[Table]:
    return tables.OF[section](rows)
