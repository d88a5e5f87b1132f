"""Lines of which a part is selected with the mouse."""

import re
from collections.abc import Sequence

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.selection import Selection
from textual.strip import Strip

# What two clicks select.
WORD = re.compile(r"\S+")


def with_selection(strip: Strip, selection: Selection, line: int, style: Style) -> Strip:
    """Draw what the selection covers of a line in its style."""
    span = selection.get_span(line)
    if span is None:
        return strip
    start, end = span
    end = strip.cell_length if end == -1 else min(end, strip.cell_length)
    if start >= end:
        return strip
    before, chosen, after = strip.crop(0, start), strip.crop(start, end), strip.crop(end)
    chosen = Strip([Segment(each.text, (each.style or Style()) + style) for each in chosen])
    return Strip.join([before, chosen, after])


def word_at(line: str, column: int, margin: int) -> tuple[int, int] | None:
    """The columns of the word at one of them, as it is drawn after a margin; None where is none."""
    for match in WORD.finditer(line):
        start = margin + cell_len(line[: match.start()])
        end = start + cell_len(match[0])
        if start <= column < end:
            return start, end
    return None


def selected_text(lines: Sequence[str], selection: Selection, margin: int) -> str:
    """The text of a selection over lines that are drawn with a margin before them.

    There may be fewer of them by now.
    """
    chosen = list[str]()
    for number, line in enumerate(lines):
        span = selection.get_span(number)
        if span is not None:
            start, end = span
            strip = Strip([Segment(line)])
            last = strip.cell_length if end == -1 else max(end - margin, 0)
            chosen.append(strip.crop(max(start - margin, 0), last).text.rstrip())
    return "\n".join(chosen)
