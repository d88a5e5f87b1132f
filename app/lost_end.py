"""A paste whose end is lost on the way, as where a stopped program goes on: a hand ends it.

All that comes after its beginning would be taken for pasted, Ctrl-C too. Knows no terminal and
no parser.
"""

import re
import time

# Ctrl-C by itself, also by the Kitty keyboard protocol: what somebody presses who waits in vain.
# Not Esc, which may be the first byte of the end's mark on a slow line.
_GIVES_UP = re.compile(r"\x03|\x1b\[99;[0-9:;]*u")
# How long nothing else must have come.
_STALLED_SECONDS = 1.0


class LostEnd:
    """Looks at all that a terminal sends."""

    def __init__(self) -> None:
        self._stalled_since = time.monotonic()

    def is_ended_by(self, text: str, *, pasting: bool) -> bool:
        """Whether what has come just now ends a paste, and is no part of it.

        pasting: whether one has begun before.
        """
        now = time.monotonic()
        if not _GIVES_UP.fullmatch(text):
            self._stalled_since = now
            return False
        return pasting and now - self._stalled_since > _STALLED_SECONDS
