"""What is a loop, and what only repeats itself as texts do."""

import re

import pytest

from app.repetition import Repetition

_PIECES = re.compile(r"\s?\w{1,6}|\s|[^\w\s]")


def _ends_after(text: str) -> int | None:
    """Tokens after which a text is found to go in circles; None where it is not."""
    repetition = Repetition()
    for count, piece in enumerate(_PIECES.findall(text), start=1):
        if repetition.add(hash(piece), piece):
            return count
    return None


_SENTENCE = "I am sorry, but I cannot help you with that request. "
_PARAGRAPH = (
    "The sea was calm that day, and the captain looked at the horizon for a long while. "
    "He knew that the storm would come, as it always had, and that no one would believe him. "
)
_LOOPS = {
    "a sentence": _SENTENCE * 40,
    "lines": (_SENTENCE + "\n") * 40,
    "a paragraph": (_PARAGRAPH + "\n\n") * 20,
    "numbered lines": "".join(f"{at}. {_SENTENCE}\n" for at in range(1, 90)),
    "numbered pairs": "".join(
        f"{at}. {_SENTENCE}\n{at + 1}. {_PARAGRAPH}\n" for at in range(1, 90, 2)
    ),
    "after a text": _PARAGRAPH + "Then it began. " + _SENTENCE * 40,
    "few words": "The cat and the cat and " * 200,
    "no spaces": "我不知道该怎么办才好。" * 60,
}
_TABLE = "| name | yes | no |\n|---|---|---|\n" + "".join(
    f"| item {at} | {at * 3} | {at % 2} |\n" for at in range(60)
)
_NO_LOOPS = {
    "a table": _TABLE,
    "a table of one value": "| yes | no | yes | no |\n" * 18,
    "times tables": "".join(f"{a} x {b} = {a * b}\n" for a in range(1, 13) for b in range(1, 13)),
    "counting": " ".join(map(str, range(1, 400))),
    "a list": "".join(f"- item number {at} of the list\n" for at in range(80)),
    "code": "".join(f"    assert square({at}) == {at * at}\n" for at in range(60)),
    "equal code": "        self.values.append(0)\n" * 18,
    "markup": "<table>\n" + ("<tr>" + "<td></td>" * 7 + "</tr>\n") * 6 + "</table>\n",
    "a matrix": ("0, " * 16 + "\n") * 16,
    "a drawing": "".join("#" * 40 + " " * (at % 5) + "\n" for at in range(20)),
    "a rule": "-" * 300,
    "a laugh": "ha " * 120,
    "a refrain": (_SENTENCE * 3 + _PARAGRAPH) * 3,
    "a chorus": "".join(f"{word} {_SENTENCE}" * 3 for word in ("One.", "Two.", "Three.", "Four.")),
    "a page": " ".join(f"word{at % 97} of {at % 89} and {at % 83}" for at in range(900)),
}


@pytest.mark.parametrize("name", _LOOPS)
def test_what_goes_round_in_circles_is_found(name: str) -> None:
    found = _ends_after(_LOOPS[name])
    assert found is not None
    # Not before it is plain, and well before an answer of the usual length is full of it.
    assert 130 < found < 480


@pytest.mark.parametrize("name", _NO_LOOPS)
def test_texts_that_repeat_themselves_are_left_alone(name: str) -> None:
    assert _ends_after(_NO_LOOPS[name]) is None


def test_what_has_no_end_is_found_at_last_whatever_it_is() -> None:
    for text in ("-", "0, ", "ha "):
        assert (_ends_after(text * 2000) or 0) > 300


def test_a_token_takes_as_long_in_a_long_answer() -> None:
    """Comparisons are few; how many is counted."""
    looked = 0

    class Token(int):
        def __eq__(self, other: object) -> bool:
            nonlocal looked
            looked += 1
            return int(self) == other

        __hash__ = int.__hash__

    repetition = Repetition()
    for at in range(20_000):
        repetition.add(Token(at % 1009), "word\n" if at % 50 == 0 else "word")
    assert looked < 10 * 20_000
