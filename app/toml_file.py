"""TOML files that users may edit: read as they are, written whole, private.

Knows nothing of what is in them.
"""

import re
import tomllib
from collections.abc import Mapping
from datetime import date, time
from pathlib import Path
from typing import Any

from app import private
from kvcache.errors import EmberError, reason

_BARE_KEY = re.compile("[A-Za-z0-9_-]+")


def read(path: Path, what: str) -> dict[str, Any]:
    """What is in the file, {} where there is none. Raises EmberError where it is no TOML."""
    try:
        # Editors of another system put a byte order mark first.
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        cause = " ".join(reason(error).split())
        raise EmberError(f"{path}: {what} cannot be read ({cause})") from error


def read_to_write(path: Path, what: str) -> tuple[dict[str, Any], list[str]]:
    """As `read`, for who writes the file anew: a damaged one is kept aside, which a line says.

    Raises OSError.
    """
    private.make_folder(path.parent)
    try:
        return read(path, what), []
    except EmberError as error:
        return {}, [f"{error}; it is kept as {private.set_aside(path)}"]


def write(path: Path, heading: str, content: Mapping[str, Any]) -> None:
    """Write the file. Raises OSError."""
    lines = [f"{_key(name)} = {_toml(value)}" for name, value in content.items()]
    private.write(path, "\n".join([heading, *lines, ""]))


def _toml(value: Any) -> str:
    """A value as TOML, on one line; any that a newer ember may have written."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            storable = value.encode("utf-8", "replace").decode("utf-8")
            return '"' + "".join(map(_escaped, storable)) + '"'
        case list():
            return f"[{', '.join(map(_toml, value))}]"
        case dict():
            return f"{{{', '.join(f'{_key(key)} = {_toml(each)}' for key, each in value.items())}}}"
        case date() | time():
            return value.isoformat()
        case _:
            return repr(value)


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _toml(name)


def _escaped(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    return character if character.isprintable() else f"\\U{ord(character):08X}"
