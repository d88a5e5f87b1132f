"""Special tokens cut out of a text, as llama.cpp does it.

Knows nothing of how what lies between them is tokenized.
"""

from collections import defaultdict

from models.text.vocabulary import TokenType, Vocabulary

# Texts that begin alike are looked for together: a vocabulary may have thousands.
_BEGINNING = 4


class SpecialTokens:
    """The tokens of some types in one vocabulary, by their texts."""

    def __init__(self, vocabulary: Vocabulary, types: frozenset[TokenType]) -> None:
        self._vocabulary = vocabulary
        tokens = sorted(vocabulary.of_type(types), key=lambda token: -len(token[0].encode()))
        self._ranked = tuple((rank, text, id_) for rank, (text, id_) in enumerate(tokens))
        self._by_beginning = defaultdict[str, list[tuple[int, str, int]]](list)
        for each in self._ranked:
            self._by_beginning[each[1][:_BEGINNING]].append(each)
        self._apart: dict[int, bool] = {}

    def cut_out_of(self, text: str) -> list[str | int]:
        """The text in parts, each special token replaced by its id.

        Not leftmost first: like llama.cpp, the longest token is cut out everywhere, then
        the next longest from what is left.
        """
        parts: list[str | int] = [text] if text else []
        for _, special, id_ in self._in(text):
            cut: list[str | int] = []
            for part in parts:
                if isinstance(part, int) or special not in part:
                    cut.append(part)
                else:
                    cut += _split(part, special, id_)
            parts = cut
        return parts

    def _in(self, text: str) -> list[tuple[int, str, int]]:
        """Those whose text lies in this one, by rank."""
        groups = (group for start, group in self._by_beginning.items() if start in text)
        return sorted(each for group in groups for each in group if each[1] in text)

    def stands_apart(self, id_: int) -> bool:
        """Whether none that is cut out before this one can overlap it in any text."""
        if id_ not in self._apart:
            text = self._vocabulary.texts[id_]
            size = len(text.encode())
            others = (other for _, other, _ in self._ranked if len(other.encode()) >= size)
            self._apart[id_] = not any(
                _may_overlap(text, other) for other in others if other != text
            )
        return self._apart[id_]


def _split(part: str, special: str, id_: int) -> list[str | int]:
    pieces: list[str | int] = []
    for number, plain in enumerate(part.split(special)):
        if number:
            pieces.append(id_)
        if plain:
            pieces.append(plain)
    return pieces


def _may_overlap(text: str, other: str) -> bool:
    """Whether there is a text in which the two lie over each other."""
    return text in other or any(
        other.startswith(text[-shared:]) or other.endswith(text[:shared])
        for shared in range(1, len(text))
    )
