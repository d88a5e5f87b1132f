"""Files named in a question: `@notes.md`, `@"my notes.md"`, or `@my\\ notes.md` as shells write it.

A mention of a file attaches its text; any other word with an @ stays a word, unless it is
written as a path.
"""

import re
import stat
from pathlib import Path

from app import texts, units
from app.chat.state import Draft
from app.sessions.chat import Attachment
from kvcache.errors import EmberError, reason

_MENTION = re.compile(r"""(?<!\S)@(?:(["'])(?P<quoted>.+?)\1|(?P<word>(?:\\.|\S)+))""")
_PATH = re.compile(r"(~|\.{0,2}/)")
_STOPS = ".,;:!?)"  # what may end a sentence after a mention
_MAX_BYTES = 4 << 20
_MOST_COMPLETIONS = 50


def with_mentioned(draft: Draft) -> Draft:
    """A draft with the files that its text mentions, but for those that are with it.

    Raises EmberError for one that is not there, cannot be read, is too large, or is no text.
    """
    found, known = list(draft.attachments), {each.name for each in draft.attachments}
    for match in _MENTION.finditer(draft.text):
        names = _names(match)
        is_path = bool(match["quoted"] or _PATH.match(names[-1]))
        here = (each for each in names if each in known or _is_file(each))
        name = next(here, names[-1] if is_path else None)
        if name is not None and name not in known:
            found.append(Attachment(name=name, text=_text_of(name)))
            known.add(name)
    return Draft(text=draft.text, attachments=tuple(found))


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


def _names(match: re.Match[str]) -> list[str]:
    """What a mention may name; the last is the likeliest where no file is named so."""
    if match["quoted"]:
        return [match["quoted"]]
    words = [match["word"], match["word"].rstrip(_STOPS)]
    return [*words, *(re.sub(r"\\(.)", r"\1", each) for each in words)]


def _is_file(name: str) -> bool:
    path = _expanded(name)
    try:
        return path is not None and path.is_file()
    except (OSError, ValueError):  # a name too long for a file, for one
        return False


def _text_of(name: str) -> str:
    try:
        return read_text(_expanded(name) or Path(name))
    except EmberError as error:
        raise EmberError(f"{error}; after a space it is no file: @ {name}") from error


def _expanded(name: str) -> Path | None:
    try:
        return Path(name).expanduser()
    except (RuntimeError, ValueError):
        return None
