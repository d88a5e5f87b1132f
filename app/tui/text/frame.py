"""A framed card with a title: errors, and whatever else stands out."""

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from app.tui.text.lines import LineMaker

_COPY = " ⧉ copy "
_SIDES = 4


def card(maker: LineMaker, title: str, text: str, style: Style) -> list[Strip]:
    """The lines of a card; its upper edge has a place to copy the text."""
    width = maker.width
    copy = _COPY if width > len(title) + len(_COPY) + 6 else ""
    room = max(width - 2 - len(copy) - 2, 0)
    name = f" {title[:room]} " if room else ""
    rule = "─" * max(width - 2 - len(name) - len(copy), 0)
    click = style + Style(meta={"copy": f"{title}: {text}"})
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
    body = [
        Strip.join([left, line.extend_cell_length(inner), right])
        for line in maker.wrap(text, maker.palette.text, inner)
    ]
    return [Strip([each for each in head if each.text]), *body, foot]
