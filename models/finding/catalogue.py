"""The models that ember knows by name.

Facts about files, from catalogue.json beside this one: a small, a middle and a large file
of each family. Nothing here looks at models on a disk, or at a network. Sizes and hashes
are those of the files as their publishers hold them; a file that differs is refused. What
nobody has told is null, never a guess. For any other file there are paths and `hf:` specs.
"""

import json
from pathlib import Path
from typing import Any

from models.finding.entry import CatalogueEntry, WheelFile
from models.finding.hub import HubFile

DEFAULT_NAME = "smollm2"

_FILE = Path(__file__).with_suffix(".json")
_MARKS = str.maketrans("", "", "-_: ")


def entry(name: str) -> CatalogueEntry | None:
    """The entry of that name, in any case and with any marks: `Gemma-3:4b` is `gemma3-4b`."""
    wanted = bare(name)
    return next((each for each in CATALOGUE if bare(each.name) == wanted), None)


def entry_of_file(name: str) -> CatalogueEntry | None:
    """The entry whose file has this name."""
    return next((each for each in CATALOGUE if each.hub.file_name == name), None)


def bare(name: str) -> str:
    """A name as it is compared: without marks and spaces, in one case."""
    return name.casefold().translate(_MARKS)


def _read(row: dict[str, Any]) -> CatalogueEntry:
    """One object of the file. Its `window`: what all layers but every so many see, in tokens."""
    hub, dimensions = HubFile(**row.pop("hub")), row.pop("shape")
    if window := row.pop("window", None):
        step, tokens = window["all_but_every"], window["tokens"]
        layers = range(1, dimensions["layers"] + 1)
        dimensions["windows"] = tuple(tokens if layer % step else None for layer in layers)
    wheel = WheelFile(**row.pop("wheel")) if "wheel" in row else None
    return CatalogueEntry(hub=hub, dimensions=dimensions, wheel=wheel, **row)


CATALOGUE = tuple(_read(row) for row in json.loads(_FILE.read_text(encoding="utf-8")))
