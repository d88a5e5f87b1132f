"""Numbers as people read them."""

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def size(count: float) -> str:
    """Bytes in binary units, three digits or so: 88 KiB, 5.5 MiB."""
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    digits = 0 if unit == 0 or count >= 100 else 1
    return f"{count:.{digits}f} {_UNITS[unit]}"


def file_size(count: int) -> str:
    """Bytes in decimal units, as files and downloads are told."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def count(number: int) -> str:
    """A number of tokens: 37, 1.9k, 128k."""
    if number < 1000:
        return str(number)
    thousands = number / 1000
    return f"{thousands:.1f}k" if thousands < 100 else f"{thousands:.0f}k"


def seconds(span: float) -> str:
    """A time to wait: 0.38 s, 12 s, 3 min."""
    if span < 10:
        return f"{span:.2f} s" if span < 1 else f"{span:.1f} s"
    return f"{span:.0f} s" if span < 120 else f"{span / 60:.0f} min"


def rate(per_second: float) -> str:
    """Tokens per second, without the unit."""
    return f"{per_second:.1f}" if per_second < 100 else f"{per_second:.0f}"


def bar(share: float, width: int) -> tuple[str, str]:
    """A bar of `width` cells as its filled and its empty part."""
    filled = round(min(max(share, 0.0), 1.0) * width)
    if share > 0 and filled == 0:
        filled = 1
    return "█" * filled, "░" * (width - filled)
