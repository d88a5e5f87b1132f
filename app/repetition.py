"""Notices an answer that goes round in circles: the same words or lines, again and again.

Is told tokens and their text, and knows no model. A token takes a look-up, however long the
answer is.
"""

import re
from collections.abc import Hashable

# Tokens in a row by which a place is known again.
_GRAM = 4
# So often a round is said before it is one too many.
_ROUNDS = 4
# Tokens that rounds may take in all, by how many different words are in one: nobody repeats whole
# sentences so long; rows of a table, a laugh, a drawing or a matrix of zeros do go on.
_PATIENCE = ((5, 160), (3, 320), (1, 640), (0, 1024))
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\d_]+")
# What numbers the lines of a list.
_NUMBER = re.compile(r"^[\W\d_]+")


class _Rounds:
    """Whether items are said again in the same order.

    length: of a round, 0 while there is none; same: how many items in a row were those of a
    round before.
    """

    def __init__(self, gram: int) -> None:
        self.items: list[Hashable] = []
        self.length = self.same = 0
        self._gram = gram
        self._places: dict[int, int] = {}

    def add(self, item: Hashable) -> None:
        """The next item."""
        items = self.items
        is_same = self.length > 0 and items[-self.length] == item
        items.append(item)
        place = hash(tuple(items[-self._gram :]))
        if is_same:
            self.same += 1
        else:
            self.length = len(items) - self._places.get(place, len(items))
            self.same = 0
        self._places[place] = len(items)

    @property
    def spans(self) -> int:
        """Items from the first round's beginning, where it is time to look; else 0."""
        is_often = self.length and self.same >= (_ROUNDS - 1) * self.length
        return self.same + self.length if is_often else 0


class Repetition:
    """Of one answer."""

    def __init__(self) -> None:
        self._tokens, self._lines = _Rounds(_GRAM), _Rounds(1)
        # The text of each token; the line that grows; and the token that each line began with.
        self._said: list[str] = []
        self._line: list[str] = []
        self._starts: list[int] = []
        self._start = 0

    def add(self, token: int, text: str) -> bool:
        """The next token, and what it says; whether the answer goes round in circles by now."""
        self._said.append(text)
        self._tokens.add(token)
        return self._in_tokens() or self._in_lines(text)

    def _in_tokens(self) -> bool:
        rounds = self._tokens
        if not rounds.spans:
            return False
        # Each bound is met once, so that the words are counted no more often.
        due = [
            words
            for words, patience in _PATIENCE
            if rounds.spans == max(patience, _ROUNDS * rounds.length)
        ]
        return bool(due) and _words("".join(self._said[-rounds.length :])) >= min(due)

    def _in_lines(self, text: str) -> bool:
        """By lines without their numbers."""
        self._line.append(text)
        if "\n" not in text:
            return False
        *ended, rest = "".join(self._line).split("\n")
        self._line = [rest]
        for line in ended:
            if said := _NUMBER.sub("", line).strip():
                self._lines.add(said)
                self._starts.append(self._start)
        self._start = len(self._said)
        lines = self._lines
        if not lines.spans:
            return False
        words, patience = _PATIENCE[0]
        tokens = len(self._said) - self._starts[-lines.spans]
        said = "\n".join(map(str, lines.items[-lines.length :]))
        return tokens >= patience and _words(said) >= words


def _words(said: str) -> int:
    """How many different words there are."""
    return len({word.casefold() for word in _WORDS.findall(said)})
