"""The vocabulary of a GGUF file: its pieces, their types, and the special ids.

Knows nothing of how text becomes pieces. Keys and their defaults follow the
GGUF specification and llama.cpp's loader.
"""

import re
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from kvcache.errors import quoted
from models.assumptions import Assumptions
from models.errors import GGUFError
from models.gguf.metadata import Metadata

PREFIX = "tokenizer.ggml."
# How pieces that are text write a space.
SPACE = "\u2581"

# Texts after which llama.cpp stops, whatever the file's keys and types say: ends of turns
# and of texts, and what fills or parts the files of a completion.
END_OF_GENERATION_TEXTS = frozenset(
    {
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<eos>",
        "</s>",
        "<｜end▁of▁sentence｜>",
        *("<|return|>", "<|call|>", "<|calls|>", "<|flush|>"),
        *("<turn|>", "<|tool_response>", "[e~["),
        *("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
        *("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>"),
    }
)
# Texts of the same kind that do not end an answer: where a completion is to be put in.
_FILL_IN_TEXTS = frozenset(
    f"{start}{part}{end}"
    for start, end, parts in (
        ("<|fim_", "|>", ("prefix", "suffix", "middle")),
        ("<fim-", ">", ("prefix", "suffix", "middle")),
        ("<fim_", ">", ("prefix", "suffix", "middle")),
        ("<|code_", "|>", ("prefix", "suffix", "middle")),
        ("<|", "|>", ("prefix", "suffix", "middle")),
        ("<｜fim▁", "｜>", ("begin", "hole", "end")),
        ("<", ">", ("PRE", "SUF", "MID")),
        ("▁<", ">", ("PRE", "SUF", "MID")),
    )
    for part in parts
)
# Vocabularies in which a text is no end, told by others that they hold.
_NO_END: tuple[tuple[str, tuple[frozenset[str], ...]], ...] = (
    (
        "<|end|>",
        tuple(
            frozenset(texts.split())
            for texts in ("<|return|> <|call|>", "<|call|> <|flush|>", "<|calls|> <|flush|>")
        ),
    ),
    # Gemma's is HTML's, struck out; llama.cpp knows of Gemma 4's alone.
    (
        "</s>",
        tuple(
            frozenset(texts.split())
            for texts in ("<|tool_response>", "<|plamo:eos|>", "</em> </strong>")
        ),
    ),
)
_FIM_ENDS = ("fim_pad", "fim_rep", "fim_sep")


class TokenizerModel(StrEnum):
    """The families of tokenizers, by their `tokenizer.ggml.model`."""

    SENTENCEPIECE = "llama"
    BPE = "gpt2"
    GEMMA4_BPE = "gemma4"


class TokenType(IntEnum):
    """What a token is for, as `tokenizer.ggml.token_type` stores it."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# How Python holds a byte that is not UTF-8 in a string.
_ESCAPE = re.compile("[\udc80-\udcff]")
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")

MERGEABLE = frozenset(
    {TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED, TokenType.UNDEFINED}
)
HIDDEN = frozenset({TokenType.CONTROL, TokenType.UNKNOWN})


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Pieces by id, with the ids that have a special part to play.

    Bytes of a text that are not UTF-8 are Python's surrogate escapes, so that every text
    is distinct and `text_bytes` gives what the file holds. `ids` has the first of the
    tokens that share a text.
    """

    texts: tuple[str, ...]
    types: tuple[TokenType, ...]
    ids: dict[str, int]
    bos_id: int | None
    eos_id: int | None
    unknown_id: int | None
    eog_ids: frozenset[int]
    not_text: frozenset[int]

    def __len__(self) -> int:
        return len(self.texts)

    def of_type(self, types: frozenset[TokenType]) -> Iterator[tuple[str, int]]:
        """The (text, id) of every token of the given types that a text can hold, by rising id.

        No text holds one that is not UTF-8, nor the second of two that look alike.
        """
        for index, kind in enumerate(self.types):
            text = self.texts[index]
            if kind in types and self.ids[text] == index and index not in self.not_text:
                yield text, index

    @classmethod
    def from_metadata(cls, metadata: Metadata, assumed: Assumptions) -> "Vocabulary":
        """Read and check the vocabulary.

        Raises:
            GGUFError: a key is missing or of a wrong type.
        """
        texts, not_text = _texts(metadata, assumed)
        ids = _ids(texts, assumed)
        types = _types(metadata, texts, assumed)
        special = _special_ids(metadata, len(texts), assumed)
        by_key = {id_ for name in ("eos", "eot", "eom") if (id_ := special[name]) is not None}
        by_key |= _fim_ends(metadata, len(texts))
        by_text = _ends_by_text(metadata, ids, types)
        apart = (_FILL_IN_TEXTS & ids.keys()) | {texts[id_] for id_ in by_key}
        control = by_text | _standing_apart(metadata, apart, ids, types)
        return cls(
            texts=texts,
            types=tuple(
                TokenType.CONTROL if index in control else kind for index, kind in enumerate(types)
            ),
            ids=ids,
            bos_id=special["bos"],
            eos_id=special["eos"],
            unknown_id=special["unknown"],
            eog_ids=by_text | by_key,
            not_text=not_text,
        )


def _special_ids(metadata: Metadata, size: int, assumed: Assumptions) -> dict[str, int | None]:
    """The ids that the file's keys give, by the key's first word."""
    spm = tokenizer_model(metadata) is TokenizerModel.SENTENCEPIECE
    ids: dict[str, int | None] = {}
    for name, default in (("unknown", 0), ("bos", 1), ("eos", 2), ("eot", None), ("eom", None)):
        key = f"{PREFIX}{name}_token_id"
        fits = spm and default is not None and default < size
        ids[name] = default if fits else None
        if key in metadata:
            id_ = metadata.get_int(key)
            if 0 <= id_ < size:
                ids[name] = id_
            else:
                taken = f"{default} is taken" if fits else "it is left out"
                assumed.add(f"{key} is {id_}", f"outside the vocabulary, {taken}")
    return ids


def tokenizer_model(metadata: Metadata) -> TokenizerModel:
    """The family of tokenizer that the file asks for."""
    name = metadata.get_string(PREFIX + "model")
    try:
        return TokenizerModel(name)
    except ValueError:
        supported = ", ".join(TokenizerModel)
        raise GGUFError(f"{PREFIX}model is {quoted(name)}, supported are: {supported}") from None


def _texts(metadata: Metadata, assumed: Assumptions) -> tuple[tuple[str, ...], frozenset[int]]:
    """The texts, and ids of those that are no text."""
    texts = metadata.get_strings(PREFIX + "tokens")
    if not texts:
        raise GGUFError(f"{PREFIX}tokens is empty, expected at least one token")
    odd = list[int]()
    if not is_unicode("".join(texts)):
        odd = [index for index, text in enumerate(texts) if not is_unicode(text)]
    if odd:
        assumed.add(
            f"token {odd[0]} ({quoted(text_bytes(texts[odd[0]]))})",
            "not UTF-8, no text becomes this token",
            count=len(odd),
        )
    every = tuple(text or f"[EMPTY_{index}]" for index, text in enumerate(texts))
    return every, frozenset(odd)


def _ids(texts: tuple[str, ...], assumed: Assumptions) -> dict[str, int]:
    ids: dict[str, int] = {}
    again = [index for index, text in enumerate(texts) if ids.setdefault(text, index) != index]
    if again:
        assumed.add(
            f"token {again[0]} ({quoted(texts[again[0]])})",
            "another token has this text, of two that do the first is used",
            count=len(again),
        )
    return ids


def _types(metadata: Metadata, texts: tuple[str, ...], assumed: Assumptions) -> list[TokenType]:
    key = PREFIX + "token_type"
    known = {int(kind): kind for kind in TokenType}
    if key not in metadata:
        assumed.add(f"{key} is missing", "no token is special, all are normal text")
        return [TokenType.NORMAL] * len(texts)
    numbers = one_for_each(metadata.get_ints(key), TokenType.NORMAL, texts, key, assumed).tolist()
    types = [known.get(number, TokenType.UNDEFINED) for number in numbers]
    if odd := [index for index, number in enumerate(numbers) if number not in known]:
        assumed.add(
            f"token {odd[0]} has the type {numbers[odd[0]]}",
            "unknown, it is undefined and adds no text",
            count=len(odd),
        )
    no_bytes = [
        index
        for index, kind in enumerate(types)
        if kind is TokenType.BYTE and not _BYTE.fullmatch(texts[index])
    ]
    if no_bytes:
        assumed.add(
            f"token {no_bytes[0]} ({quoted(texts[no_bytes[0]])}) is of type BYTE",
            "not <0xXX>, it is a normal token",
            count=len(no_bytes),
        )
    for index in no_bytes:
        types[index] = TokenType.NORMAL
    return types


def one_for_each(
    values: npt.NDArray[Any],
    filler: float,
    texts: tuple[str, ...],
    key: str,
    assumed: Assumptions,
) -> npt.NDArray[Any]:
    """`values` with one entry for each token: what lacks is `filler`, what is over is ignored."""
    if values.size == len(texts):
        return values
    assumed.add(
        f"{key} has {values.size} entries for {len(texts)} tokens",
        "tokens without an entry are normal and merge last",
    )
    lacking = np.full(max(0, len(texts) - values.size), filler, values.dtype)
    return np.concatenate([values[: len(texts)], lacking])


def is_unicode(text: str) -> bool:
    """Whether a token's text is all characters, without a byte that is none."""
    return text.isascii() or not _ESCAPE.search(text)


def readable(text: str) -> str:
    r"""A text of the file for display, bytes that are not UTF-8 as \xNN."""
    return text_bytes(text).decode(errors="backslashreplace")


def text_bytes(text: str) -> bytes:
    """A token's text as the file holds it."""
    return text.encode(errors="surrogateescape")


def byte_value(text: str) -> int:
    """The byte that a BYTE token's text, <0xXX>, stands for."""
    return int(text[3:5], 16)


def _fim_ends(metadata: Metadata, size: int) -> set[int]:
    """Ids of the keys for completions after which llama.cpp stops too."""
    given = (metadata.get_int(f"{PREFIX}{name}_token_id", -1) for name in _FIM_ENDS)
    return {id_ for id_ in given if 0 <= id_ < size}


def _ends_by_text(
    metadata: Metadata, ids: dict[str, int], types: list[TokenType]
) -> frozenset[int]:
    """Ids of the end-of-generation texts, whatever their type."""
    ends = END_OF_GENERATION_TEXTS & ids.keys()
    for text, signs in _NO_END:
        if any(sign <= ids.keys() for sign in signs):
            ends -= {text}
    return _standing_apart(metadata, ends, ids, types)


def _standing_apart(
    metadata: Metadata, found: AbstractSet[str], ids: dict[str, int], types: list[TokenType]
) -> frozenset[int]:
    """Ids of the texts but for ordinary pieces, as `</s>` is one in Qwen's vocabulary.

    Fine-tunes often add `<|im_end|>` as user-defined or normal; llama.cpp makes all of
    them control tokens. A normal piece that a merge makes comes out of any text, though:
    to stop there would break answers, and llama.cpp's list of exceptions grows.
    """
    return frozenset(
        ids[text]
        for text in found
        if types[ids[text]] is not TokenType.NORMAL or not _is_made(metadata, text, ids)
    )


def _is_made(metadata: Metadata, text: str, ids: dict[str, int]) -> bool:
    """Whether a text is one character, or two pieces that the tokenizer joins."""
    halves = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
    if not halves:
        return True
    merges = metadata.get(PREFIX + "merges")
    if isinstance(merges, list):
        return not {f"{left} {right}" for left, right in halves}.isdisjoint(merges)
    return any(left in ids and right in ids for left, right in halves)
