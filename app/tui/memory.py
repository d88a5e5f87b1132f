"""Memory of this process and of the machine."""

import psutil


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(psutil.Process().memory_info().rss)


def installed() -> int:
    """Bytes of memory that this machine has."""
    return int(psutil.virtual_memory().total)
