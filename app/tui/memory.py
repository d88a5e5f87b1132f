"""Memory of this process and of the machine."""

import os
from pathlib import Path

from app.rss import peak_rss

_STATM = Path("/proc/self/statm")


def resident() -> int:
    """Bytes of this process in memory now; its peak where the system does not tell."""
    if _STATM.exists():
        return int(_STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_rss()


def installed() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
