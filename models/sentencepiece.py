"""SentencePiece BPE (`tokenizer.ggml.model` = llama) on the tokenizers library.

Turns plain text into ids and a piece into bytes. Knows nothing of special
tokens in a text: those are cut out before.

SentencePiece has no merge list: two neighbours merge when their joint text is
a piece, best score first, leftmost first among equals. The library wants a
list, so it is derived: every way to cut a piece in two, ordered by the piece's
score, then longer pieces first, then longer left parts first. With scores that
differ, as training gives them, the ids are SentencePiece's, also where a piece
overlaps itself; so are runs of spaces of one score, as Mistral has them. Different
pieces of one score that overlap otherwise may merge in another order.
"""

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import Regex, models, pre_tokenizers

from models.errors import GGUFError
from models.metadata import Metadata
from models.vocabulary import MERGEABLE, PREFIX, TokenType, Vocabulary, byte_value

SPACE = "\u2581"
# Cutting a piece in two everywhere takes time by the square of its length.
_MAX_PIECE = 256


class SentencePieceBPE:
    """Encoder of plain text for one vocabulary with scores."""

    def __init__(self, vocabulary: Vocabulary, metadata: Metadata) -> None:
        self.adds_space_prefix = metadata.get_bool(PREFIX + "add_space_prefix", True)
        scores = metadata.get_floats(PREFIX + "scores", size=len(vocabulary))
        pieces = dict(vocabulary.of_type(MERGEABLE))
        longest = max(map(len, pieces), default=0)
        if longest > _MAX_PIECE:
            raise GGUFError(
                f"{PREFIX}tokens holds a token of {longest} characters, expected <= {_MAX_PIECE}"
            )
        fallback = _fallback(vocabulary)
        # A character that occurs in pieces but is none itself still merges; if it is
        # left over, its bytes stand for it.
        absent = sorted(set().union(*pieces) - pieces.keys())
        self._size = len(vocabulary)
        self._spelled = [
            [fallback[b] for b in character.encode() if b in fallback] for character in absent
        ]
        symbols = pieces | {character: self._size + n for n, character in enumerate(absent)}
        merges = _derive_merges(pieces, symbols, scores)
        self._library = _build(vocabulary, symbols, merges)

    def encode(self, text: str, *, after_special: bool) -> list[int]:
        """The ids of a text without special tokens.

        `after_special`: the text opens the input or follows a special token, where
        SentencePiece models expect a space before the first word.
        """
        prefix = SPACE if after_special and self.adds_space_prefix else ""
        escaped = prefix + text.replace(" ", SPACE)
        ids: list[int] = self._library.encode(escaped, add_special_tokens=False).ids
        return self._spell(ids) if self._spelled else ids

    def _spell(self, ids: list[int]) -> list[int]:
        spelled: list[int] = []
        for id_ in ids:
            spelled += [id_] if id_ < self._size else self._spelled[id_ - self._size]
        return spelled

    @staticmethod
    def piece_bytes(text: str) -> bytes:
        """The bytes that a normal piece stands for."""
        return text.replace(SPACE, " ").encode()


def _fallback(vocabulary: Vocabulary) -> dict[int, int]:
    """The id of each byte's token."""
    tokens = vocabulary.of_type(frozenset({TokenType.BYTE}))
    return {byte_value(text): index for text, index in tokens}


def _derive_merges(
    pieces: dict[str, int], symbols: dict[str, int], scores: npt.NDArray[np.float64]
) -> list[tuple[str, str]]:
    texts = [text for text in pieces if len(text) > 1]
    own_scores = scores[[pieces[text] for text in texts]] if texts else np.empty(0)
    lengths = np.array([len(text) for text in texts], np.int64)
    order = np.lexsort((-lengths, -own_scores))
    merges = []
    for text in (texts[index] for index in order):
        for cut in range(len(text) - 1, 0, -1):
            left, right = text[:cut], text[cut:]
            if left in symbols and right in symbols:
                merges.append((left, right))
    return merges


def _build(
    vocabulary: Vocabulary, symbols: dict[str, int], merges: list[tuple[str, str]]
) -> tokenizers.Tokenizer:
    known = symbols | dict(vocabulary.of_type(frozenset({TokenType.BYTE})))
    unknown = None if vocabulary.unknown_id is None else vocabulary.texts[vocabulary.unknown_id]
    if unknown is not None:
        known.setdefault(unknown, vocabulary.ids[unknown])
    library = tokenizers.Tokenizer(
        models.BPE(known, merges, unk_token=unknown, fuse_unk=False, byte_fallback=True)
    )
    if not any(SPACE in text.lstrip(SPACE) for text in symbols):
        # No piece has a space after its first letter, so no merge crosses the start of
        # a word: words can be cut apart, and the library remembers them.
        words = Regex(f"{SPACE}+[^{SPACE}]*|[^{SPACE}]+")
        library.pre_tokenizer = pre_tokenizers.Split(words, "isolated")
    return library
