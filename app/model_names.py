"""What models are called: by whoever types a name, and for whoever reads one.

Opens no file and asks no memory, so that a shell can complete names with it.
"""

from pathlib import PurePosixPath

from models.finding import catalogue
from models.finding.discover import discover
from models.title import of_file, titled


def typed_names() -> list[str]:
    """Names that load a model: of those on this machine, then of those to fetch."""
    return list(dict.fromkeys([*(each.name for each in discover()), *_catalogue_names()]))


def title_of(spec: str) -> str:
    """A model for people, by the name that loads it: `SmolLM2 135M Instruct · Q4_1`."""
    if known := catalogue.entry(spec):
        return titled(known.title, known.quantization)
    place, _, rest = spec.partition(":")
    if place == "ollama":
        return rest
    return of_file(PurePosixPath(spec.partition("@")[0]).name)


def _catalogue_names() -> list[str]:
    return [each.name for each in catalogue.CATALOGUE]
