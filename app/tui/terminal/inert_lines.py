"""The last look at every line of the screen, whoever made it and of what."""

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from app.inert import inert

_ENDS = str.maketrans({"\n": "␊", "\t": " "})


class InertLines(LineFilter):
    """Leaves nothing in a line that a terminal would obey.

    Texts that are known to be foreign are made inert before they are laid out, since
    that changes their width; this is for those that nobody thought of.
    """

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The segments; the same ones where they are harmless, as nearly all are."""
        return [each if each.text.isprintable() else _harmless(each) for each in segments]


def _harmless(segment: Segment) -> Segment:
    return Segment(inert(segment.text).translate(_ENDS), segment.style, segment.control)
