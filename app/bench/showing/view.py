"""How a section's rows become tables, charts and sentences.

A view is a function of rows alone, so that what is printed, written to a folder,
put into the documentation and compared with another day's comes from the same JSON.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

from app.bench.showing.chart import Chart
from app.bench.showing.table import Table

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A row's field that `bench compare` follows. spread: the field of its standard deviation."""

    field: str
    more_is_better: bool = False
    spread: str = ""


class Ruling(Enum):
    """What figures say of a claim."""

    VERIFIED = "verified"
    FALSIFIED = "falsified"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """On one claim. what: the figures it was held against.

    average: of these figures, in times. holds_from, holds_to: the shortest and the
    longest length for which the claim holds. None where there are none.
    """

    what: str
    ruling: str  # a Ruling's value, as JSON has it
    average: float | None
    holds_from: int | None
    holds_to: int | None


def _none(_rows: Sequence[Any]) -> list[Any]:
    return []


@dataclass(frozen=True, kw_only=True)
class View(Generic[R]):
    """One section for a reader.

    row: the dataclass of its rows. identity: fields that tell rows apart.
    findings: what the figures say, a sentence each. verdicts: on claims, if any.
    """

    name: str
    title: str
    row: type[R]
    tables: Callable[[Sequence[R]], list[Table]]
    findings: Callable[[Sequence[R]], list[str]]
    identity: tuple[str, ...]
    measures: tuple[Measure, ...]
    charts: Callable[[Sequence[R]], list[Chart]] = _none
    verdicts: Callable[[Sequence[R]], list[Verdict]] = _none

    def as_json(self, rows: Sequence[R]) -> list[dict[str, Any]]:
        """The rows as the JSON contract has them."""
        return [{"section": self.name, **asdict(row)} for row in rows]  # type: ignore[call-overload]

    def from_json(self, rows: Sequence[dict[str, Any]]) -> list[R]:
        """The rows of this section among those of a JSON object."""
        mine = (row for row in rows if row.get("section") == self.name)
        return [
            self.row(**{name: value for name, value in row.items() if name != "section"})
            for row in mine
        ]
