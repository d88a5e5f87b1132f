"""Numbers as the tables show them."""

from collections.abc import Hashable, Iterable
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def distinct(items: Iterable[T]) -> list[T]:
    """Each once, in the order of their first."""
    return list(dict.fromkeys(items))


def megabytes(count: float | None) -> str:
    """Decimal megabytes: 0.61, 22.9, 3018; a dash for None."""
    if count is None:
        return "-"
    value = count / 1e6
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def tokens(count: int) -> str:
    """100, 2k, 128k; thousands where it is not a multiple of 1024."""
    if count >= 1024 and count % 1024 == 0:
        return f"{count // 1024}k"
    return f"{count:,}"


def short(value: float | None) -> str:
    """Three significant digits, never in powers of ten where it can be read without."""
    if value is None:
        return "-"
    if value and not 1e-5 <= abs(value) < 1e6:
        return f"{value:.2e}"
    digits = f"{value:#.3g}"
    return f"{float(digits):,.0f}" if abs(value) >= 100 else digits.rstrip(".")


def percent(share: float) -> str:
    """A share with its sign: +3.1%."""
    return f"{100 * share:+.1f}%"
