"""The styles that text is drawn with, taken from the theme by whoever owns one."""

from dataclasses import dataclass, fields

from rich.style import Style

_PLAIN, _DIM, _BOLD = Style(), Style(dim=True), Style(bold=True)

# For Textual's own markup of styles: less than the text, more than a border.
MUTED = "$foreground 60%"


@dataclass(frozen=True, kw_only=True)
class Palette:
    """One style for each kind of text; `dark` chooses the colours of code."""

    text: Style = _PLAIN
    muted: Style = _DIM
    accent: Style = _BOLD
    user: Style = _BOLD
    heading: Style = _BOLD
    code: Style = _BOLD
    border: Style = _DIM
    error: Style = _BOLD
    dark: bool = True
    ansi: bool = False

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of the styles."""
        return tuple(each.name for each in fields(cls) if each.type is Style)

    @property
    def code_theme(self) -> str:
        """The Pygments theme for code blocks."""
        if self.ansi:
            return "ansi_dark" if self.dark else "ansi_light"
        return "monokai" if self.dark else "default"


def without_background(style: Style) -> Style:
    """The style for text on whatever is behind it; the colour was mixed with that already."""
    return Style(
        color=style.color, bold=style.bold, italic=style.italic, dim=style.dim, strike=style.strike
    )
