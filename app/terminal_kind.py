"""What the terminal can show, as far as the environment and its streams tell.

Knows no screen. `streams.prepare` has come before, and says `dumb` where nothing is said.
"""

import os
import sys

_OBEY_NOTHING = ("", "dumb", "unknown")
# Of the chat's frames, bars and marks, one of each block of characters.
_DRAWING = "─│╭╯▏█▒×▸…“”●␛⠋"
_PLAIN_LOCALES = ("C", "POSIX")


def obeys_nothing() -> bool:
    """Whether a terminal shows control sequences as text, instead of doing what they say."""
    return os.environ.get("TERM", "").lower() in _OBEY_NOTHING


def why_no_screen() -> str | None:
    """Why the full screen cannot be drawn; "" where there is no terminal, None where it can be."""
    # The screen is drawn on stderr.
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        return ""
    if obeys_nothing():
        return f"TERM={os.environ.get('TERM', '')} is a terminal without a full screen"
    if named := _plain_locale():
        return f"the locale {named} has no characters for the full screen: try LC_ALL=C.UTF-8"
    try:
        _DRAWING.encode(sys.stderr.encoding)
    except UnicodeEncodeError:
        return f"{sys.stderr.encoding} has no characters for the full screen: take a UTF-8 locale"
    return None


def _plain_locale() -> str | None:
    """The locale that the user has set, where it is C; Python takes UTF-8 in its place.

    Where none is set, as in containers, the terminal is taken for one of UTF-8 too.
    """
    given = os.environ.get("LC_ALL") or os.environ.get("LANG") or ""
    return given if given in _PLAIN_LOCALES and sys.flags.utf8_mode else None
