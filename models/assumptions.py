"""What was assumed about a file that leaves something out, or says what cannot be.

Collected while one file is read, and shown to the user after it. Knows nothing
of files, keys or screens.
"""


class Assumptions:
    """Grows while a file is read; `notes` is what came together."""

    def __init__(self) -> None:
        self._subjects: dict[str, list[str]] = {}

    def add(self, subject: str, assumed: str) -> None:
        """Note that `assumed` was decided for `subject`.

        Subjects of one decision share a note, however many there are, so `assumed` must
        not vary with what the file holds. Text from the file goes into a subject, as its
        repr, for it may be shown on a terminal.
        """
        self._subjects.setdefault(assumed, []).append(subject)

    def notes(self) -> tuple[str, ...]:
        """A sentence for each decision, which names its first subject and counts the rest."""
        return tuple(
            f"{subjects[0]}{f' and {len(subjects) - 1} more' if subjects[1:] else ''}: {assumed}"
            for assumed, subjects in self._subjects.items()
        )
