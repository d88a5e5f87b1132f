"""What was typed before, recalled line by line as in a shell.

Knows no widget and no file: who has them gives what there is.
"""

from collections.abc import Callable, Sequence


class PromptHistory:
    """earlier: what was asked in other runs, oldest first; looked for when it is first wanted."""

    def __init__(self, earlier: Callable[[], Sequence[str]]) -> None:
        self._earlier = earlier
        self._known: list[str] | None = None
        self._sent: list[str] = []
        self._texts: list[str] = []
        self._at = 0

    def add(self, text: str) -> None:
        """This was sent."""
        self._sent.append(text)
        self._texts, self._at = [], 0

    def step(self, present: str, by: int) -> str | None:
        """The text before (-1) or after (1) the present one, None where there is none.

        The present text is what one comes back to; what is changed of an earlier one is kept
        until something is sent.
        """
        if not self._texts:
            if by > 0:
                return None
            if self._known is None:
                self._known = list(self._earlier())
            self._texts = [*_without_repeats([*self._known, *self._sent]), present]
            self._at = len(self._texts) - 1
        self._texts[self._at] = present
        wanted = self._at + by
        if not 0 <= wanted < len(self._texts):
            return None
        self._at = wanted
        return self._texts[wanted]


def _without_repeats(texts: Sequence[str]) -> list[str]:
    """Each text once, where it came last."""
    return list(dict.fromkeys(reversed(texts)))[::-1]
