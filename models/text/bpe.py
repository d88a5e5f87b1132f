"""BPE with merges (`tokenizer.ggml.model` = gpt2) on the tokenizers library.

Turns plain text into ids and a piece into bytes. Knows nothing of special
tokens in a text: those are cut out before.

Most vocabularies spell bytes: GPT-2 writes each of the 256 bytes as one printable
character, so that pieces and merges are ordinary strings: a space is written as U+0120.
"""

import re

import tokenizers
from tokenizers import Regex, models, pre_tokenizers

from kvcache.errors import quoted
from models.assumptions import Assumptions
from models.gguf.metadata import Metadata
from models.text.pretokenizers import PreTokenizer, Spelling
from models.text.vocabulary import MERGEABLE, PREFIX, SPACE, TokenType, Vocabulary, text_bytes


def _byte_alphabet() -> tuple[str, ...]:
    """The character of each byte: itself where it prints, else from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


BYTE_ALPHABET = _byte_alphabet()
_NEWLINES = re.compile(r"(\n+)")
_LINE_START = re.compile(f"(?m)^(?=[^\\n{SPACE}])")
_BYTE_OF = {character: bytes([byte]) for byte, character in enumerate(BYTE_ALPHABET)}


class ByteLevelBPE:
    """Encoder of plain text for a vocabulary with merges whose pieces spell bytes."""

    adds_space_prefix = False

    def __init__(
        self,
        vocabulary: Vocabulary,
        metadata: Metadata,
        pre: PreTokenizer,
        assumed: Assumptions,
    ) -> None:
        pieces = dict(vocabulary.of_type(MERGEABLE))
        merges = _read_merges(metadata, pieces, assumed)
        # No unknown token is named: a byte without a token is left out before anything merges.
        self._library = tokenizers.Tokenizer(
            models.BPE(pieces, merges, ignore_merges=pre.ignore_merges)
        )
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._library.pre_tokenizer = pre_tokenizers.Sequence([*_splits(pre), to_bytes])

    def encode(self, text: str, *, after_special: bool) -> list[int]:
        """The ids of a text without special tokens."""
        ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return ids

    @staticmethod
    def piece_bytes(text: str) -> bytes:
        """The bytes that a normal piece stands for."""
        return b"".join(_BYTE_OF.get(character) or text_bytes(character) for character in text)


class TextBPE:
    """Encoder of plain text for a vocabulary with merges whose pieces are text themselves.

    A character that is no piece is spelled by tokens of its bytes, <0xXX>.
    """

    adds_space_prefix = False

    def __init__(
        self,
        vocabulary: Vocabulary,
        metadata: Metadata,
        pre: PreTokenizer,
        assumed: Assumptions,
    ) -> None:
        self._pre = pre
        self._pieces = dict(vocabulary.of_type(MERGEABLE))
        merges = _read_merges(metadata, self._pieces, assumed)
        known = self._pieces | dict(vocabulary.of_type(frozenset({TokenType.BYTE})))
        self._library = tokenizers.Tokenizer(models.BPE(known, merges, byte_fallback=True))
        self._library.pre_tokenizer = pre_tokenizers.Sequence(_splits(pre))

    def encode(self, text: str, *, after_special: bool) -> list[int]:
        """The ids of a text without special tokens."""
        if self._pre.spelling is not Spelling.TEXT:
            text = text.replace(" ", SPACE)
        if self._pre.spelling is Spelling.SPACED_WORDS:
            text = _LINE_START.sub(SPACE, text)
        if not self._pre.whole_newlines:
            return self._merge(text)
        ids: list[int] = []
        for part in _NEWLINES.split(text):
            whole = part.startswith("\n") and part in self._pieces
            ids += [self._pieces[part]] if whole else self._merge(part)
        return ids

    def _merge(self, text: str) -> list[int]:
        ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return ids

    def piece_bytes(self, text: str) -> bytes:
        """The bytes that a normal piece stands for."""
        spaced = self._pre.spelling is not Spelling.TEXT
        return text_bytes(text.replace(SPACE, " ") if spaced else text)


def _splits(pre: PreTokenizer) -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]


def _read_merges(
    metadata: Metadata, pieces: dict[str, int], assumed: Assumptions
) -> list[tuple[str, str]]:
    """The merges, best first; of a merge listed twice the first counts."""
    listed = metadata.get_strings(PREFIX + "merges")
    parts = (merge.partition(" ") for merge in listed)
    pairs = [(left, right) if left else _after_space(right) for left, _, right in parts]
    once = dict.fromkeys(pairs)
    merges = [
        (left, right)
        for left, right in once
        if left in pieces and right in pieces and left + right in pieces
    ]
    skipped = list[int]()
    if len(merges) < len(once):
        known = set(merges)
        skipped = [number for number, pair in enumerate(pairs) if pair not in known]
    if skipped:
        assumed.add(
            f"{PREFIX}merges[{skipped[0]}] ({quoted(listed[skipped[0]])})",
            "not two pieces that make a third, it is skipped",
            count=len(skipped),
        )
    return merges


def _after_space(rest: str) -> tuple[str, str]:
    """The pair whose first piece begins with a space."""
    left, _, right = rest.partition(" ")
    return " " + left, right
