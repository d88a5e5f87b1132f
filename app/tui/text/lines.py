"""Plain text to lines of a given width."""

from io import StringIO
from itertools import accumulate

from rich.cells import chop_cells
from rich.console import Console
from rich.style import Style
from rich.text import Text
from textual.strip import Strip

from app.tui.text.colours import Palette

_TAB = 4
# Cells of the widest letter.
_WIDEST = 2


class LineMaker:
    """Renders text and Rich renderables to lines, at one width and in one palette."""

    def __init__(self, width: int, palette: Palette) -> None:
        self.width, self.palette = max(width, 1), palette
        self.console = Console(
            file=StringIO(),
            width=self.width,
            color_system="truecolor",
            force_terminal=True,
            legacy_windows=False,
            markup=False,
            highlight=False,
            emoji=False,
        )

    def wrap(self, text: str, style: Style, width: int | None = None) -> list[Strip]:
        """Wrap by words; a word that is too long is folded."""
        return self.wrap_text(_styled(text, style), width)

    def wrap_text(self, text: Text, width: int | None = None) -> list[Strip]:
        """Wrap a styled text; no line is too narrow for a wide letter."""
        width = max(self.width if width is None else width, _WIDEST)
        lines = text.wrap(self.console, width, overflow="fold", tab_size=_TAB)
        return [Strip(line.render(self.console), line.cell_len) for line in lines]

    def fold(self, text: str, style: Style, width: int) -> list[Strip]:
        """Break at `width` cells, as code wants it; before a wide letter that would cross them."""
        return self.fold_text(_styled(text, style), width)

    def fold_text(self, text: Text, width: int) -> list[Strip]:
        """Break a styled text as `fold`."""
        strips: list[Strip] = []
        for line in text.split("\n", allow_blank=True):
            line.expand_tabs(_TAB)
            parts = chop_cells(line.plain, max(width, _WIDEST))
            cuts = list(accumulate(map(len, parts)))[:-1]
            strips += [Strip(part.render(self.console)) for part in line.divide(cuts)]
        return strips


def _styled(text: str, style: Style) -> Text:
    """A text in one style; as a span, since Rich's wrapping drops a text's own style."""
    styled = Text(text)
    styled.stylize(style)
    return styled
