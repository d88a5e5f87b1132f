"""Copying to the system's clipboard.

A local program is asked first (pbcopy, wl-copy, xclip), as terminals differ in
what they take; else, and over SSH, the terminal itself is told (OSC 52), which says
nothing back. tmux stands between: it takes a text for itself, and passes it on or not.
GNU screen passes nothing on.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from enum import Enum

_PROGRAMS: tuple[tuple[str | None, tuple[str, ...]], ...] = (
    (None, ("pbcopy",)),
    ("WAYLAND_DISPLAY", ("wl-copy",)),
    ("DISPLAY", ("xclip", "-selection", "clipboard")),
)
_TMUX = ("tmux", "load-buffer", "-w", "-")
_SECONDS = 3


class Copied(Enum):
    """Where a text is now, as it is told; with a place for what the text is."""

    CLIPBOARD = "copied {}"
    TMUX = "{}: in tmux's buffer, prefix ] pastes it; sent to the terminal too"
    TERMINAL = "{}: sent to the terminal, for its clipboard"
    NOWHERE = "not copied: screen passes nothing on; /export FILE writes the chat to a file"


def copy(text: str, by_terminal: Callable[[str], None]) -> Copied:
    """Copy `text`; `by_terminal` sends it with OSC 52. May take a moment."""
    remote = "SSH_CONNECTION" in os.environ
    command = None if remote else _program()
    if command is not None and _run(command, text):
        return Copied.CLIPBOARD
    if "TMUX" in os.environ and _run(_TMUX, text):
        return Copied.TMUX
    if "STY" in os.environ:
        return Copied.NOWHERE
    by_terminal(text)
    return Copied.TERMINAL


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
