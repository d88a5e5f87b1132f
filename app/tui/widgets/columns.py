"""Texts in columns."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest

from textual.content import Content
from textual.geometry import Size
from textual.widget import Widget

from app.inert import inert_line

_GAP = 2

Row = Sequence[str]


class Columns(Widget):
    """Rows of cells, each wrapped in its column; what is drawn can be selected.

    A column is as wide as its text, but for the last, which has the rest, and at most two
    fifths of the room.
    """

    def __init__(self, title: str, rows: Sequence[Row] = ()) -> None:
        super().__init__()
        self.border_title = title
        self.rows = rows

    def show(self, rows: Sequence[Row]) -> None:
        """Draw others, if they are."""
        if rows != self.rows:
            self.rows = rows
            self.refresh(layout=True)

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self._lines(width))

    def render(self) -> Content:
        return Content("\n").join(self._lines(self.content_size.width))

    def _lines(self, width: int) -> list[Content]:
        cells = [[Content(inert_line(text)) for text in row] for row in self.rows]
        most, left, widths = max(width * 2 // 5, 1), width, list[int]()
        for column in list(zip(*cells, strict=True))[:-1]:
            widths.append(min(max(each.cell_length for each in column), most))
            left -= widths[-1] + _GAP
        return [line for row in cells for line in _laid(row, [*widths, max(left, 1)])]


def _laid(row: Sequence[Content], widths: Sequence[int]) -> Iterator[Content]:
    """The lines of a row; the first cell, what it is about, is bold."""
    first, *others = row
    bold = (first.stylize("bold"), *others)
    cells = [cell.wrap(width) for cell, width in zip(bold, widths, strict=True)]
    for parts in zip_longest(*cells, fillvalue=Content("")):
        padded = [
            part.pad_right(width - part.cell_length)
            for part, width in zip(parts, widths, strict=True)
        ]
        yield Content(" " * _GAP).join(padded).rstrip()
