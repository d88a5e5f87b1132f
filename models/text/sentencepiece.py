"""SentencePiece BPE (`tokenizer.ggml.model` = llama).

Turns plain text into ids and a piece into bytes. Knows nothing of special
tokens in a text: those are cut out before.

SentencePiece has no merge list: two neighbours merge when their joint text is
a piece, best score first, leftmost first among equals. The tokenizers library
wants a list, which such vocabularies do not have: with pieces of one score no
list says "leftmost first", and one long piece has more cuts than can be listed.
So the merging is done here, in time n log n of a text's n characters.
"""

import re
from functools import lru_cache
from heapq import heappop, heappush

import numpy as np
import numpy.typing as npt

from models.assumptions import Assumptions
from models.gguf.metadata import Metadata
from models.text.vocabulary import MERGEABLE, PREFIX, SPACE, Vocabulary, one_for_each, text_bytes

# Words of a text come again and again: so many are remembered, up to this length.
_REMEMBERED_WORDS, _REMEMBERED_LENGTH = 1 << 14, 32
_WORD = re.compile(f"{SPACE}*[^{SPACE}]*")
# So many pieces are looked for in each text: Gemma has one, pieces of several words are many.
_FEW_CROSSING = 16


class SentencePieceBPE:
    """Encoder of plain text for one vocabulary with scores."""

    def __init__(self, vocabulary: Vocabulary, metadata: Metadata, assumed: Assumptions) -> None:
        self.adds_space_prefix = metadata.get_bool(PREFIX + "add_space_prefix", True)
        self._ids = dict(vocabulary.of_type(MERGEABLE))
        costs = (-_scores(metadata, vocabulary, assumed)).tolist()
        self._costs = {text: costs[index] for text, index in self._ids.items()}
        self._longest = max(map(len, self._ids), default=0)
        self._bytes = [vocabulary.ids.get(f"<0x{byte:02X}>") for byte in range(256)]
        self._unknown = [] if vocabulary.unknown_id is None else [vocabulary.unknown_id]
        # Merges cross the start of a word where they make such a piece, and nowhere else.
        self._crossing = [text for text in self._ids if SPACE in text.lstrip(SPACE)]
        self._remembered = lru_cache(_REMEMBERED_WORDS)(self._merge)

    def encode(self, text: str, *, after_special: bool) -> list[int]:
        """The ids of a text without special tokens.

        `after_special`: the text opens the input or follows a special token, where
        SentencePiece models expect a space before the first word.
        """
        prefix = SPACE if after_special and self.adds_space_prefix else ""
        ids: list[int] = []
        for word in self._words(prefix + text.replace(" ", SPACE)):
            short = len(word) <= _REMEMBERED_LENGTH
            ids += self._remembered(word) if short else self._merge(word)
        return ids

    def _words(self, text: str) -> list[str]:
        """Parts of a text that merge by themselves: its words, where no merge can cross them."""
        few = len(self._crossing) <= _FEW_CROSSING
        parts = few and not any(piece in text for piece in self._crossing)
        return _WORD.findall(text) if parts else [text]

    def _merge(self, word: str) -> list[int]:
        """The ids of a word: neighbours merge until none can.

        A part lies from `start` to `ends[start]`; one that has gone ends at 0.
        """
        size, costs, longest = len(word), self._costs, self._longest
        ends, before = list(range(1, size + 1)), list(range(-1, size))
        heap: list[tuple[float, int, int]] = []

        def offer(start: int, end: int) -> None:
            if end - start <= longest and (cost := costs.get(word[start:end])) is not None:
                heappush(heap, (cost, start, end))

        for start in range(size - 1):
            offer(start, start + 2)
        while heap:
            _, start, end = heappop(heap)
            middle = ends[start]
            # A part of this offer may have gone, or have grown.
            if not 0 < middle < size or ends[middle] != end:
                continue
            ends[start], ends[middle], before[end] = end, 0, start
            if start:
                offer(before[start], end)
            if end < size:
                offer(start, ends[end])
        ids: list[int] = []
        start = 0
        while start < size:
            ids += self._spell(word[start : ends[start]])
            start = ends[start]
        return ids

    def _spell(self, part: str) -> list[int]:
        """A piece's id; for a character that is no piece its bytes', or the unknown id."""
        if part in self._ids:
            return [self._ids[part]]
        in_bytes = [self._bytes[byte] for byte in part.encode()]
        known = [id_ for id_ in in_bytes if id_ is not None]
        return known if len(known) == len(in_bytes) else self._unknown

    @staticmethod
    def piece_bytes(text: str) -> bytes:
        """The bytes that a normal piece stands for."""
        return text_bytes(text.replace(SPACE, " "))


def _scores(
    metadata: Metadata, vocabulary: Vocabulary, assumed: Assumptions
) -> npt.NDArray[np.float64]:
    """A score for each token; one that is not a number is worse than all that are."""
    key = PREFIX + "scores"
    if key not in metadata:
        assumed.add(f"{key} is missing", "all pieces count alike, the leftmost merges first")
        return np.zeros(len(vocabulary))
    scores = one_for_each(metadata.get_floats(key), -np.inf, vocabulary.texts, key, assumed)
    if (odd := np.flatnonzero(np.isnan(scores))).size:
        subject = f"{key}[{odd[0]}] is NaN"
        assumed.add(subject, "not a number, this token merges last", count=odd.size)
    return np.where(np.isnan(scores), -np.inf, scores)
