"""Lines of the conversation as the terminal gets them.

A line that only moves up with the others is the same object again, so that Textual
need not make its escape sequences anew. Knows no widget.
"""

from collections.abc import Sequence

from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter
from textual.strip import Strip

_MOST_KEPT = 512


class DrawnLines:
    """Fits margin and text to a width, in a base style, through the app's filters.

    Begin with `prepare`; a change of any of its arguments forgets what was drawn.
    """

    def __init__(self) -> None:
        self._width, self._base = 0, Style.null()
        self._filters: Sequence[LineFilter] = ()
        self._background = Color(0, 0, 0)
        self._kept: dict[int, tuple[Segment, Strip, Strip]] = {}

    def prepare(
        self, width: int, base: Style, filters: Sequence[LineFilter], background: Color
    ) -> None:
        """What the next lines are drawn with."""
        known = self._width, self._base, list(self._filters), self._background
        if known != (width, base, list(filters), background):
            self._kept.clear()
        self._width, self._base = width, base
        self._filters, self._background = filters, background

    def line(self, at: int, left: Segment, text: Strip) -> Strip:
        """Line `at` of the whole with its margin."""
        known = self._kept.get(at)
        if known is None or (known[0], known[1]) != (left, text):
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            known = left, text, self.once(at, Strip.join([Strip([left]), text]))
            self._kept[at] = known
        return known[2]

    def once(self, at: int, strip: Strip) -> Strip:
        """A line that is not kept; the mouse finds by `at` what it points at."""
        strip = strip.crop_extend(0, self._width, None)
        strip = strip.apply_style(self._base).apply_offsets(0, at)
        for line_filter in self._filters:
            strip = strip.apply_filter(line_filter, self._background)
        return strip
