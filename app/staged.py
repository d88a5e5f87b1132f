"""Files that are written beside their place first, and come there whole or not at all.

Knows nothing of what is in them, nor how a whole one takes its place.
"""

import glob
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Nobody is still at work on what is older.
_STALE_SECONDS = 3600


@contextmanager
def staged(path: Path, text: str) -> Iterator[Path]:
    """A private file beside `path` with all of the text on the disk; it is gone after the block.

    What a killed program left there is removed, once it is old. Raises OSError.
    """
    _sweep(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield Path(name)
    finally:
        with suppress(OSError):
            Path(name).unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    with suppress(OSError):
        for left in path.parent.glob(f".{glob.escape(path.name)}-*"):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                left.unlink(missing_ok=True)
