"""The styles that text is drawn with, taken from the theme by whoever owns one."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache

from rich.color_triplet import ColorTriplet
from rich.style import Style
from textual.color import BLACK, WHITE, Color

_PLAIN, _DIM, _BOLD = Style(), Style(dim=True), Style(bold=True)

# For Textual's own markup of styles: less than the text, more than a border.
MUTED = "$muted"
# How far text stands out from what is behind it, at least, as WCAG 2 counts it; less for muted.
TEXT_CONTRAST, MUTED_CONTRAST = 4.5, 3.0
_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Palette:
    """One style for each kind of text; `dark` chooses the colours of code.

    background: what the text stands on; None where the terminal chooses it.
    """

    text: Style = _PLAIN
    muted: Style = _DIM
    accent: Style = _BOLD
    user: Style = _BOLD
    heading: Style = _BOLD
    code: Style = _BOLD
    border: Style = _DIM
    error: Style = _BOLD
    background: Color | None = None
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


def standing_out(color: Color, behind: Sequence[Color], least: float) -> Color:
    """The colour, or the nearest to it towards white or black that has so much contrast to all.

    least: a ratio of luminances from 1 to 21, as WCAG 2 has it.
    """
    known = [_luminance(each) for each in behind]
    best, most = color, 0.0
    for step in range(_STEPS + 1):
        for end in (WHITE, BLACK):
            tried = color.blend(end, step / _STEPS, alpha=1.0)
            has = min(_ratio(_luminance(tried), each) for each in known)
            if has >= least:
                return tried
            if has > most:
                best, most = tried, has
    return best


def _ratio(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def _luminance(color: Color) -> float:
    red, green, blue = (
        each / 12.92 if each <= 0.03928 else ((each + 0.055) / 1.055) ** 2.4
        for each in color.normalized
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def readable(style: Style, background: Color | None) -> Style:
    """The style with a colour that can be read on a background; None for one that is not known."""
    if background is None or style.color is None or style.color.is_default:
        return style
    return style + Style(color=_readable(style.color.get_truecolor(), background).rich_color)


@cache
def _readable(triplet: ColorTriplet, background: Color) -> Color:
    return standing_out(Color(*triplet), [background], TEXT_CONTRAST)


def without_background(style: Style) -> Style:
    """The style for text on whatever is behind it; the colour was mixed with that already."""
    return Style(
        color=style.color, bold=style.bold, italic=style.italic, dim=style.dim, strike=style.strike
    )
