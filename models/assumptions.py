"""What was assumed about a file that leaves something out, or says what cannot be.

Collected while one file is read, and shown to the user after it. Knows nothing
of files, keys or screens.
"""


class Assumptions:
    """Grows while a file is read; `notes` is what came together."""

    def __init__(self) -> None:
        self._firsts: dict[str, str] = {}
        self._counts: dict[str, int] = {}

    def add(self, subject: str, assumed: str, *, count: int = 1) -> None:
        """Note that `assumed` was decided for `subject`, and for `count` such things in all.

        Subjects of one decision share a note, however many there are, so `assumed` must
        not vary with what the file holds. Text from the file goes into a subject, as its
        repr, for it may be shown on a terminal.
        """
        self._firsts.setdefault(assumed, subject)
        self._counts[assumed] = self._counts.get(assumed, 0) + count

    def notes(self) -> tuple[str, ...]:
        """A sentence for each decision, which names its first subject and counts the rest."""
        notes = []
        for assumed, subject in self._firsts.items():
            others = self._counts[assumed] - 1
            notes.append(f"{subject}{f' and {others} more' if others else ''}: {assumed}")
        return tuple(notes)
