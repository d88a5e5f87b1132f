"""How a slow step tells whoever waits how far it is.

Knows nothing of bars, screens or what the step does.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One report: bytes done, bytes in all (None while unknown), and what is being done."""

    done_bytes: int
    total_bytes: int | None
    label: str


ProgressCallback = Callable[[Progress], None]
"""Called often, also while nothing comes. What it raises ends the work."""


def size_text(count: int) -> str:
    """Bytes as people say them, in decimal units: 98 MB, 4.1 GB."""
    return f"{count / 10**6:.0f} MB" if count < 10**9 else f"{count / 10**9:.1f} GB"


def silent(report: Progress) -> None:
    """The callback for callers who do not ask."""
