"""Files that are written for the user: new ones only, and whole or not at all.

Knows no chat and no screen.
"""

import re
from contextlib import suppress
from itertools import chain, count
from pathlib import Path

from kvcache.errors import EmberError, reason

_NOT_IN_NAMES = re.compile(r"[^\w-]+")
_MOST_OF_NAME = 48


def named(text: str, *, title: str, ending: str) -> Path:
    """The file that a user names, or else one of a title that is not there yet."""
    slug = _NOT_IN_NAMES.sub("-", title).strip("-").lower()[:_MOST_OF_NAME] or "chat"
    return expanded(text) if text else _unused(f"{slug}{ending}")


def expanded(text: str) -> Path:
    """A path as it is typed. Raises EmberError for the home folder of nobody."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise EmberError(f"{text}: no such user; write the path in full") from error


def write(path: Path, content: str) -> None:
    """Write a file that does not exist yet. Raises EmberError."""
    try:
        with path.open("x", encoding="utf-8", errors="replace") as file:
            file.write(content)
    except FileExistsError as error:
        raise EmberError(f"{path} exists already: name another file") from error
    except (OSError, ValueError) as error:
        # Half a file would stand in the way of the whole one.
        with suppress(OSError, ValueError):
            path.unlink()
        raise EmberError(
            f"{path} cannot be written: {reason(error)}; name a file in a folder that takes it"
        ) from error


def _unused(name: str) -> Path:
    """A file of that name, numbered where there is one."""
    path = Path(name)
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return next(each for each in chain([path], numbered) if not each.exists())
