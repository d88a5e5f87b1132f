"""A chart as data: series of points over two axes. `svg` draws it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum


class Scale(Enum):
    """How an axis maps numbers to lengths. TOKENS is logarithmic, with ticks at powers of two."""

    LINEAR = "linear"
    LOG = "log"
    TOKENS = "tokens"


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis; a linear one begins at zero."""

    label: str
    scale: Scale = Scale.LINEAR


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points (x, y) under one name.

    line: join them in the order given; otherwise they are dots alone.
    bound: a dashed line without dots, for what is compared with.
    labels: a text beside each point, or none.
    """

    name: str
    points: Sequence[tuple[float, float]]
    line: bool = True
    labels: Sequence[str] = ()
    bound: bool = False


def curves(points: Iterable[tuple[str, tuple[float, float]]]) -> list[Series]:
    """A series for each name that has points, in the order of their first."""
    found: dict[str, list[tuple[float, float]]] = {}
    for name, point in points:
        found.setdefault(name, []).append(point)
    return [Series(name=name, points=each) for name, each in found.items()]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """name: of the file, without its ending."""

    name: str
    title: str
    x: Axis
    y: Axis
    series: Sequence[Series]
