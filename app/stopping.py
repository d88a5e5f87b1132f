"""Ends an answer at a stop string without ever showing part of one."""

from collections.abc import Sequence

from models.text.thinking import size_of_beginning


class StopStrings:
    """Watches streamed text for the first of several stop strings."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.stopped = False

    def add(self, text: str) -> str:
        """Take new text; return what is safe to show.

        Text that may be the start of a stop string is held back. After a stop
        string nothing more is shown and `stopped` is True.
        """
        if self.stopped:
            return ""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._release(min(found))
        return self._release(len(self._held) - size_of_beginning(self._held, self._stops))

    def finish(self) -> str:
        """The text still held back, when the answer ended by other means."""
        return "" if self.stopped else self._release(len(self._held))

    def _release(self, length: int) -> str:
        shown, self._held = self._held[:length], self._held[length:]
        return shown
