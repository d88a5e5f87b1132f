"""Draws a `Chart` as SVG text: axes, ticks, grid, legend, on a light background.

Plain strings; no plotting library. Colours are Okabe and Ito's, told apart by
colour-blind readers, and each series has a marker of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

from app.bench.showing.chart import Axis, Chart, Scale, Series

_WIDTH, _HEIGHT = 860, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 210, 46, 58
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
_FONT = "font-family='system-ui,-apple-system,Segoe UI,Helvetica,Arial,sans-serif'"
_DASHES = "stroke-dasharray='6 5'"
_LABEL_SIZE = 11
_GRID, _INK, _FAINT = "#e3e3e3", "#222222", "#555555"


@dataclass(frozen=True, kw_only=True)
class _Mapped:
    """An axis with its numbers: ticks, and where a number lies between 0 and 1."""

    axis: Axis
    ticks: tuple[float, ...]
    place: Callable[[float], float]


def draw(chart: Chart) -> str:
    """The chart as the text of an SVG file. Raises ValueError for a chart without points."""
    points = [point for series in chart.series for point in series.points]
    if not points:
        raise ValueError(f"the chart {chart.name} has no points")
    x = _mapped(chart.x, [point[0] for point in points])
    y = _mapped(chart.y, [point[1] for point in points])
    parts = [*_frame(chart), *_x_axis(x), *_y_axis(y)]
    for index, series in enumerate(chart.series):
        parts += [*_series(series, index, x, y), *_legend(series, index)]
    return "\n".join([*parts, "</svg>", ""])


def linear_ticks(top: float) -> tuple[float, ...]:
    """From zero to at least `top` in four to ten round steps."""
    if top <= 0:
        return 0.0, 1.0
    magnitude = 10.0 ** floor(log10(top))
    step = next(s * magnitude for s in (0.1, 0.2, 0.25, 0.5, 1, 2) if top / (s * magnitude) <= 8)
    return tuple(step * index for index in range(ceil(top / step - 1e-9) + 1))


def log_ticks(low: float, high: float, *, base: int) -> tuple[float, ...]:
    """Powers of `base` from at most `low` to at least `high`; 2 and 5 between few tens."""
    first, last = 0, 0
    while base**first > low:
        first -= 1
    while base ** (first + 1) <= low:
        first += 1
    last = first + 1
    while base**last < high:
        last += 1
    powers = [float(base) ** exponent for exponent in range(first, last + 1)]
    if base == 10 and len(powers) <= 3:
        powers = [p * part for p in powers[:-1] for part in (1, 2, 5)] + powers[-1:]
        while len(powers) > 2 and powers[-2] >= high:
            powers.pop()
        while len(powers) > 2 and powers[1] <= low:
            powers.pop(0)
    return tuple(powers)


def _mapped(axis: Axis, values: list[float]) -> _Mapped:
    if axis.scale is Scale.LINEAR:
        ticks = linear_ticks(max(values))
        return _Mapped(axis=axis, ticks=ticks, place=lambda value: value / ticks[-1])
    positive = [value for value in values if value > 0] or [1.0]
    base = 2 if axis.scale is Scale.TOKENS else 10
    ticks = log_ticks(min(positive), max(positive), base=base)
    low, span = log10(ticks[0]), log10(ticks[-1]) - log10(ticks[0])
    # Zero has no logarithm: it lies on the axis.
    return _Mapped(
        axis=axis,
        ticks=ticks,
        place=lambda value: max(0.0, (log10(value) - low) / span) if value > 0 else 0.0,
    )


def _x(share: float) -> float:
    return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)


def _y(share: float) -> float:
    return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)


def _frame(chart: Chart) -> list[str]:
    return [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {_HEIGHT}' "
        f"width='{_WIDTH}' height='{_HEIGHT}' role='img' {_FONT}>",
        f"<title>{escape(chart.title)}</title>",
        f"<rect width='{_WIDTH}' height='{_HEIGHT}' fill='#ffffff'/>",
        _text(_LEFT, 26, chart.title, size=16, weight="600"),
    ]


def _x_axis(x: _Mapped) -> list[str]:
    parts = []
    for tick in x.ticks:
        at = _x(x.place(tick))
        parts.append(_rule(at, _y(0), at, _y(1)))
        parts.append(_text(at, _y(0) + 18, _number(tick), anchor="middle", fill=_FAINT))
    middle = _x(0.5)
    return [*parts, _text(middle, _HEIGHT - 14, x.axis.label, size=13, anchor="middle")]


def _y_axis(y: _Mapped) -> list[str]:
    parts = []
    for tick in y.ticks:
        at = _y(y.place(tick))
        parts.append(_rule(_x(0), at, _x(1), at))
        parts.append(_text(_LEFT - 8, at + 4, _number(tick), anchor="end", fill=_FAINT))
    middle = _y(0.5)
    turn = f" transform='rotate(-90 18 {middle})'"
    return [*parts, _text(18, middle, y.axis.label, size=13, anchor="middle", more=turn)]


def _series(series: Series, index: int, x: _Mapped, y: _Mapped) -> list[str]:
    places = [(_x(x.place(px)), _y(y.place(py))) for px, py in series.points]
    colour, parts = _COLOURS[index % len(_COLOURS)], []
    if series.line and len(places) > 1:
        path = " ".join(f"{px},{py}" for px, py in places)
        dashes = _DASHES if series.bound else ""
        parts.append(
            f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2' {dashes}/>"
        )
    if not series.bound:
        parts += [_marker(px, py, index) for px, py in places]
    return [*parts, *_labels(places, series.labels)]


def _labels(places: list[tuple[float, float]], labels: Sequence[str]) -> list[str]:
    """Each beside its point where no other label is; one that has no room is left out."""
    parts: list[str] = []
    taken: list[tuple[float, float, float]] = []  # left, right, baseline
    for (px, py), label in zip(places, labels, strict=False):
        width = _LABEL_SIZE * 0.6 * len(label)
        for left, base in ((px + 7, py - 6), (px + 7, py + 15), (px - 7 - width, py + 15)):
            free = all(
                left > right or left + width < start or abs(base - line) > _LABEL_SIZE
                for start, right, line in taken
            )
            if free:
                taken.append((left, left + width, base))
                parts.append(_text(left, base, label, size=_LABEL_SIZE))
                break
    return parts


def _legend(series: Series, index: int) -> list[str]:
    at = _TOP + 10 + 20 * index
    left = _WIDTH - _RIGHT + 18
    colour = _COLOURS[index % len(_COLOURS)]
    sign = _marker(left, at, index)
    if series.bound:
        sign = f"<path d='M{left - 8} {at}h16' stroke='{colour}' stroke-width='2' {_DASHES}/>"
    return [sign, _text(left + 12, at + 4, series.name)]


def _marker(x: float, y: float, index: int) -> str:
    colour = _COLOURS[index % len(_COLOURS)]
    match index % 3:
        case 0:
            return f"<circle cx='{x}' cy='{y}' r='4' fill='{colour}'/>"
        case 1:
            return f"<rect x='{x - 3.5}' y='{y - 3.5}' width='7' height='7' fill='{colour}'/>"
        case _:
            corners = f"{x},{y - 5} {x + 4.5},{y + 3.5} {x - 4.5},{y + 3.5}"
            return f"<polygon points='{corners}' fill='{colour}'/>"


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f"<line x1='{x1}' y1='{y1}' x2='{x2}' y2='{y2}' stroke='{_GRID}'/>"


def _text(
    x: float,
    y: float,
    text: str,
    *,
    size: int = 12,
    anchor: str = "start",
    weight: str = "400",
    fill: str = _INK,
    more: str = "",
) -> str:
    return (
        f"<text x='{x}' y='{y}' font-size='{size}' font-weight='{weight}' fill='{fill}' "
        f"text-anchor='{anchor}'{more}>{escape(text)}</text>"
    )


def _number(value: float) -> str:
    """As short as it can be read: 0.02, 512, 128k, 5e-05."""
    if value >= 1024 and value % 1024 == 0:
        return f"{value / 1024:g}k"
    if value >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:g}"
