"""Where the messages of a chat without a screen come from.

Knows no chat. `line_editor` is for terminals that can be drawn on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from kvcache.errors import EmberError, reason

PROMPT = "> "


class LineInput(Protocol):
    """Gives a message at a time."""

    def read(self, begun: str = "") -> str:
        """The next message. begun: how it begins, where that can be changed.

        Raises EOFError at the end, KeyboardInterrupt, EmberError where stdin cannot be read.
        """
        ...

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """Within this, what is typed between messages is not seen, and belongs to the next."""
        ...


class PlainInput:
    """A line is a message: of a pipe, or of a terminal that is its own editor."""

    def read(self, begun: str = "") -> str:
        """The next line; nothing can begin it."""
        try:
            return input(PROMPT)
        except OSError as error:
            raise EmberError(f"cannot read stdin: {reason(error)}") from error

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """Such a terminal shows what is typed at once."""
        yield
