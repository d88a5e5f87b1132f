"""Files that are nobody else's business: 0600 in folders of 0700, whatever the umask says.

Knows nothing of what is in them.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from app.staged import staged
from kvcache.errors import reason

_FOLDER, _FILE, _OTHERS = 0o700, 0o600, 0o077


def make_folder(path: Path) -> None:
    """Make a folder that only its owner can look into, its parents as usual. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=_FOLDER, exist_ok=True)


def narrow(paths: Iterable[Path]) -> list[str]:
    """Take away what others may do with files and folders that exist.

    Returns a line for each that stays open to them: it belongs to somebody
    else, or cannot be changed.
    """
    lines = []
    for path in paths:
        try:
            mode = path.stat().st_mode
            if mode & _OTHERS:
                path.chmod(mode & 0o777 & ~_OTHERS)
        except FileNotFoundError:
            continue
        except OSError as error:
            lines.append(f"others may be able to read {path}: {reason(error)}")
    return lines


def touch(path: Path) -> None:
    """Make an empty file where there is none, before anything is written to it. Raises OSError."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, _FILE))


def write(path: Path, text: str) -> None:
    """Write a whole file, or leave the old one as it is where that fails. Raises OSError.

    A link is followed: what it points to is replaced, not the link.
    """
    path = path.resolve()
    with staged(path, text) as whole:
        whole.replace(path)


def set_aside(path: Path) -> Path:
    """Give a damaged file the first free name beside it; returns that. Raises OSError."""
    path = path.resolve()
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    return path.rename(aside)
