"""A Markdown table as lines: as wide as its text, else wrapped, else a record a row.

    wide enough      in between        narrow
     tier  bits       tier  bits        tier: cold
     ──────────       ──────────        bits: 4.5, all
     cold  4.5,       cold  4.5,        ──────────
           all              all         ...

Knows no Markdown: cells are styled texts.
"""

from collections.abc import Sequence
from enum import Enum
from itertools import zip_longest

from rich.cells import cell_len
from rich.segment import Segment
from rich.text import Text
from textual.strip import Strip

from app.tui.text.lines import LineMaker

_MARGIN, _GAP = 1, 2
# A column that is narrower than its text has at least so many cells.
_LEAST = 8

Row = Sequence[Text]


class Side(Enum):
    """Where a column's text stands."""

    LEFT = "left"
    CENTER = "center"
    RIGHT = "right"


def table_lines(
    maker: LineMaker, rows: Sequence[Row], sides: Sequence[Side], width: int
) -> list[Strip]:
    """The lines of a table; its first row is the header."""
    natural = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    room = width - _MARGIN - _GAP * (len(natural) - 1)
    if room < sum(min(each, _LEAST) for each in natural):
        return _records(maker, rows, width)
    widths = _shared(natural, room)
    laid = [_row(maker, row, sides, widths) for row in rows]
    rule = "─" * (sum(widths) + _GAP * (len(widths) - 1))
    lines = [*laid[0], Strip([Segment(" " * _MARGIN), Segment(rule, maker.palette.border)])]
    # Rows of several lines would run into each other.
    gap = [Strip([])] if any(len(each) > 1 for each in laid[1:]) else []
    for number, row in enumerate(laid[1:]):
        lines += [*(gap if number else []), *row]
    return lines


def _shared(natural: Sequence[int], room: int) -> list[int]:
    """Widths that fit together: the widest columns give way, all to the same width."""
    widths = [max(each, 1) for each in natural]
    if sum(widths) <= room:
        return widths
    left, given = room, [0] * len(widths)
    order = sorted(range(len(widths)), key=lambda at: widths[at])
    for place, at in enumerate(order):
        given[at] = min(widths[at], left // (len(widths) - place))
        left -= given[at]
    return given


def _row(maker: LineMaker, row: Row, sides: Sequence[Side], widths: Sequence[int]) -> list[Strip]:
    cells = [
        [_placed(line, side, width) for line in maker.wrap_text(text, width)]
        for text, side, width in zip(row, sides, widths, strict=True)
    ]
    lines = []
    for parts in zip_longest(*cells):
        line = [Strip([Segment(" " * _MARGIN)])]
        for part, width in zip(parts, widths, strict=True):
            if len(line) > 1:
                line.append(Strip([Segment(" " * _GAP)]))
            line.append(part or Strip([Segment(" " * width)]))
        lines.append(Strip.join(line))
    return lines


def _placed(line: Strip, side: Side, width: int) -> Strip:
    spare = max(width - line.cell_length, 0)
    before = {Side.LEFT: 0, Side.CENTER: spare // 2, Side.RIGHT: spare}[side]
    parts = [Strip([Segment(" " * before)]), line, Strip([Segment(" " * (spare - before))])]
    return Strip.join([each for each in parts if each.cell_length])


def _records(maker: LineMaker, rows: Sequence[Row], width: int) -> list[Strip]:
    """Each row as lines of `header: cell`."""
    header, *body = rows
    if not body:
        return [line for text in header for line in maker.wrap_text(text, width)]
    rule = Strip([Segment("─" * width, maker.palette.border)])
    lines: list[Strip] = []
    for row in body:
        lines += [rule] if lines else []
        for name, text in zip(header, row, strict=True):
            lines += maker.wrap_text(Text.assemble(name, ": ", text), width)
    return lines


def _width(text: Text) -> int:
    return max(cell_len(line) for line in text.plain.split("\n"))
