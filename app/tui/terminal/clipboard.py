"""Copying to the system's clipboard.

A local program is asked first (pbcopy, wl-copy, xclip), as terminals differ in
what they take; else, and over SSH, the terminal itself is told (OSC 52).
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence

_PROGRAMS: tuple[tuple[str | None, tuple[str, ...]], ...] = (
    (None, ("pbcopy",)),
    ("WAYLAND_DISPLAY", ("wl-copy",)),
    ("DISPLAY", ("xclip", "-selection", "clipboard")),
)
_SECONDS = 3


def copy(text: str, by_terminal: Callable[[str], None]) -> None:
    """Copy `text`; `by_terminal` sends it with OSC 52. May take a moment."""
    remote = "SSH_CONNECTION" in os.environ
    command = None if remote else _program()
    if command is None or not _run(command, text):
        by_terminal(text)


def _program() -> Sequence[str] | None:
    for variable, command in _PROGRAMS:
        needed = variable is None or os.environ.get(variable)
        if needed and shutil.which(command[0]):
            return command
    return None


def _run(command: Sequence[str], text: str) -> bool:
    try:
        done = subprocess.run(
            command,
            input=text.encode("utf-8", "replace"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
