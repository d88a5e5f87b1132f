"""Texts that users give: as files, on stdin, as flags.

A byte order mark is no part of a text, and \\r\\n is a line feed; nothing else that
might end a line does. Knows no command.
"""

import fcntl
import os
import re
import sys
from argparse import ArgumentTypeError
from pathlib import Path

from kvcache.errors import EmberError, quoted, reason

MOST_BYTES = 64 << 20
_BYTE_ORDER_MARK = "\ufeff"
# How Python marks bytes that it cannot read in flags and, as `streams` opens it, on stdin.
_UNREAD = re.compile("[\ud800-\udfff]")


def read_file(path: Path, what: str, *, most: int = MOST_BYTES) -> str:
    """The text in a file. Raises EmberError where it has more than `most` bytes, or is none.

    what: the file's purpose, for errors.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except (OSError, ValueError) as error:
        raise EmberError(f"cannot read {what} {path}: {reason(error)}") from error
    if len(data) > most:
        raise EmberError(f"{what} {path} has more than {most >> 20} MiB: give a part of it")
    try:
        if b"\0" in data:
            raise UnicodeDecodeError("utf-8", data, data.index(b"\0"), 0, "a zero byte")
        return _unmarked(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        where = f"byte {error.start + 1}: {error.reason}"
        raise EmberError(f"{what} {path} is no text file (UTF-8; {where})") from error


def is_piped() -> bool:
    """Whether stdin is a file, a pipe or a device that can be read, and no terminal."""
    try:
        number = sys.stdin.fileno()
        way = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError:  # a stand-in for stdin has no number
        return False
    # What was closed is open for nobody's writing (`streams`), as nohup does it too.
    return way != os.O_WRONLY and not os.isatty(number)


def read_stdin() -> str:
    """All of stdin. Raises EmberError as `read_file`."""
    try:
        text = sys.stdin.read(MOST_BYTES + 1)
    except OSError as error:
        raise EmberError(f"cannot read stdin: {reason(error)}") from error
    if len(text) > MOST_BYTES:
        raise EmberError(f"stdin has more than {MOST_BYTES >> 20} MiB: give a part of it")
    if "\0" in text:
        raise EmberError("stdin is no text (UTF-8; it has a zero byte)")
    try:
        return _unmarked(_read(text))
    except UnicodeError as error:
        raise EmberError("stdin is no text (UTF-8; it has bytes that are none)") from error


def typed(text: str) -> str:
    """What was typed, or is a flag. Raises EmberError where some bytes are no text."""
    if "\0" in text:
        raise EmberError(f"got {quoted(text)}, expected text without zero bytes")
    try:
        return _unmarked(_read(text))
    except UnicodeError as error:
        shown = quoted(_UNREAD.sub(_byte, text)).replace(r"\\x", r"\x")
        raise EmberError(f"got {shown}, expected text in UTF-8") from error


def flag(text: str) -> str:
    """An argparse type: any text."""
    try:
        return typed(text)
    except EmberError as error:
        raise ArgumentTypeError(str(error)) from None


def count(text: str, most: int) -> int | None:
    """The whole number from 0 to `most` that a text is; None where it is none."""
    # Python refuses to read numbers of thousands of digits.
    found = int(text) if text.isdecimal() and len(text) < 20 else most + 1
    return found if found <= most else None


def lines(text: str) -> list[str]:
    """The lines that are not blank."""
    return [line for line in text.split("\n") if line.strip()]


def _byte(unread: re.Match[str]) -> str:
    """As it is written in code."""
    return f"\\x{ord(unread[0]) & 0xFF:02x}"


def _read(text: str) -> str:
    """A text with the bytes that the locale cannot read read as UTF-8. Raises UnicodeError."""
    return os.fsencode(text).decode("utf-8") if _UNREAD.search(text) else text


def _unmarked(text: str) -> str:
    return text.removeprefix(_BYTE_ORDER_MARK).replace("\r\n", "\n")
