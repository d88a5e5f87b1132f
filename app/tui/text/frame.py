"""A framed card with a title: errors, and whatever else stands out."""

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from app.tui.text.lines import LineMaker

_COPY = " ⧉ copy "
_SIDES = 4
# The title is in the upper edge where the edge is longer by so much, else below it.
_EDGE = 4


def card(maker: LineMaker, title: str, text: str, style: Style) -> list[Strip]:
    """The lines of a card; its upper edge has a place to copy the text."""
    width = maker.width
    click = style + Style(meta={"copy": f"{title}: {text}"})
    copy = _COPY if width > len(_COPY) + _EDGE else ""
    fits = cell_len(title) + len(_COPY) + _EDGE + 2 < width
    name = f" {title} " if fits else ""
    rule = "─" * max(width - 2 - cell_len(name) - len(copy), 0)
    head = [
        Segment("┌", style),
        Segment(name, style + Style(bold=True)),
        Segment(rule, style),
        Segment(copy, click),
        Segment("┐", style),
    ]
    foot = Strip([Segment(f"└{'─' * max(width - 2, 0)}┘", style)])
    left, right = Strip([Segment("│ ", style)]), Strip([Segment(" │", style)])
    inner = max(width - _SIDES, 1)
    lines = [] if fits else maker.wrap(title, style + Style(bold=True), inner)
    lines += maker.wrap(text, maker.palette.text, inner)
    body = [Strip.join([left, line.extend_cell_length(inner), right]) for line in lines]
    return [Strip([each for each in head if each.text]), *body, foot]
