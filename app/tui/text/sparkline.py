"""A line of little columns that begins at zero, two values a cell."""

from collections.abc import Sequence

# Braille dots of a column, from none to four, for the left and the right half of a cell.
_LEFT = (0x00, 0x40, 0x44, 0x46, 0x47)
_RIGHT = (0x00, 0x80, 0xA0, 0xB0, 0xB8)
_BLANK = 0x2800


def sparkline(values: Sequence[float], width: int, height: int = 1) -> list[str]:
    """The last 2 * width values as `height` lines of `width` cells, top line first.

    The lowest dot is for any speed above zero, the highest for the greatest value.
    """
    shown = list(values)[-2 * width :]
    shown = [0.0] * (2 * width - len(shown)) + shown
    top = max(shown, default=0.0)
    dots = [_dots(value, top, 4 * height) for value in shown]
    lines = []
    for row in reversed(range(height)):
        levels = [min(max(each - 4 * row, 0), 4) for each in dots]
        pairs = zip(levels[::2], levels[1::2], strict=True)
        lines.append("".join(chr(_BLANK + _LEFT[a] + _RIGHT[b]) for a, b in pairs))
    return lines


def _dots(value: float, top: float, most: int) -> int:
    if value <= 0 or top <= 0:
        return 0
    return max(round(value / top * most), 1)
