"""Files named in a question: `@notes.md`, or `@"my notes.md"`.

A mention of a file attaches its text; any other word with an @ stays a word.
"""

import re
import stat
from pathlib import Path

from app import texts, units
from app.chat.state import Draft
from app.sessions.chat import Attachment
from kvcache.errors import EmberError, reason

_MENTION = re.compile(r'(?<!\S)@(?:"([^"\n]+)"|(\S+))')
_STOPS = ".,;:!?)"  # what may end a sentence after a mention
_MAX_BYTES = 4 << 20
_MOST_COMPLETIONS = 50


def attached(text: str) -> tuple[Attachment, ...]:
    """The files that `text` mentions.

    Raises EmberError for one that cannot be read, is too large, or is no text.
    """
    found: dict[str, Attachment] = {}
    for match in _MENTION.finditer(text):
        for name in (match[1] or match[2], (match[2] or "").rstrip(_STOPS)):
            if name and (path := _file(name)) is not None:
                found.setdefault(name, Attachment(name=name, text=read_text(path)))
                break
    return tuple(found.values())


def with_mentioned(draft: Draft) -> Draft:
    """A draft with the files that its text mentions. Raises EmberError as `attached` does."""
    known = {each.name for each in draft.attachments}
    mentioned = tuple(each for each in attached(draft.text) if each.name not in known)
    return Draft(text=draft.text, attachments=draft.attachments + mentioned)


def read_text(path: Path) -> str:
    """A text file's content. Raises EmberError."""
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise EmberError(f"cannot read {path} ({reason(error)})") from error
    # A pipe would never end, nor a device like /dev/zero.
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "no file"
        raise EmberError(f"{path} is {what}: name a text file")
    if found.st_size > _MAX_BYTES:
        said, most = units.size(found.st_size), units.size(_MAX_BYTES)
        raise EmberError(f"{path.name} has {said}, more than {most}: attach a part of it")
    # Files of /proc say that they are empty.
    return texts.read_file(path, "the attachment", most=_MAX_BYTES)


def mention(path: str) -> str:
    """How a path is mentioned."""
    return f'@"{path}"' if " " in path else f"@{path}"


def paths_beginning(prefix: str) -> list[str]:
    """Files and folders (with a slash) whose path begins with `prefix`, for completion."""
    folder, _, start = prefix.rpartition("/")
    root = _expanded(f"{folder}/" if folder or prefix.startswith("/") else ".")
    if root is None:
        return []
    head = f"{folder}/" if folder or prefix.startswith("/") else ""
    try:
        entries = sorted(root.iterdir(), key=lambda each: (not each.is_dir(), each.name.lower()))
        return [
            f"{head}{entry.name}{'/' if entry.is_dir() else ''}"
            for entry in entries
            if entry.name.lower().startswith(start.lower())
            and (start.startswith(".") or not entry.name.startswith("."))
        ][:_MOST_COMPLETIONS]
    except OSError:
        return []


def _file(name: str) -> Path | None:
    """The file of that name, or None."""
    path = _expanded(name)
    try:
        return path if path is not None and path.is_file() else None
    except (OSError, ValueError):  # a name too long for a file, for one
        return None


def _expanded(name: str) -> Path | None:
    try:
        return Path(name).expanduser()
    except (RuntimeError, ValueError):
        return None
