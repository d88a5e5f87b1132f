"""What is said for some seconds over the chat."""

from time import time

from textual.notifications import Notification

_LEAST_SECONDS = 0.1


class Notice(Notification):
    """Shown for a moment at least.

    Textual 8.2 asks how long it is to be shown once more as it draws it, and a timer of less than
    no time keeps the whole program for ever.
    """

    @property
    def time_left(self) -> float:
        """Seconds, never none."""
        return max(super().time_left, _LEAST_SECONDS)

    @property
    def has_expired(self) -> bool:
        """Whether it need not be drawn any more."""
        return self.raised_at + self.timeout <= time()
