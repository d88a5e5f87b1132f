"""Files that are written for the user: new ones only, and whole or not at all.

Knows no chat and no screen.
"""

import os
import re
from itertools import chain, count
from pathlib import Path

from app.staged import staged
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
    """Write a file that does not exist yet, for its owner alone. Raises EmberError."""
    try:
        with staged(path, content) as whole:
            _take_place(whole, path)
    except FileExistsError as error:
        raise EmberError(f"{path} exists already: name another file") from error
    except (OSError, ValueError) as error:
        raise EmberError(
            f"{path} cannot be written: {reason(error)}; name a file in a folder that takes it"
        ) from error


def _take_place(whole: Path, path: Path) -> None:
    """Give a file its name. Raises FileExistsError where something has it."""
    try:
        os.link(whole, path)
    except FileExistsError:
        raise
    except OSError:  # a disk that knows no links
        if path.exists():
            raise FileExistsError(path) from None
        whole.rename(path)


def _unused(name: str) -> Path:
    """A file of that name, numbered where there is one."""
    path = Path(name)
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return next(each for each in chain([path], numbered) if not each.exists())
