"""The vocabulary of a GGUF file: its pieces, their types, and the special ids.

Knows nothing of how text becomes pieces. Keys and their defaults follow the
GGUF specification and llama.cpp's loader.
"""

import re
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from models.errors import GGUFError
from models.metadata import Metadata

PREFIX = "tokenizer.ggml."

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
    ("</s>", (frozenset({"<|tool_response>"}), frozenset({"<|plamo:eos|>"}))),
)
_FIM_ENDS = ("fim_pad", "fim_rep", "fim_sep")


class TokenizerModel(StrEnum):
    """The families of tokenizers, by their `tokenizer.ggml.model`."""

    SENTENCEPIECE = "llama"
    BYTE_LEVEL_BPE = "gpt2"


class TokenType(IntEnum):
    """What a token is for, as `tokenizer.ggml.token_type` stores it."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_BYTE = re.compile(r"<0x[0-9A-F]{2}>")

MERGEABLE = frozenset({TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED})
HIDDEN = frozenset({TokenType.CONTROL, TokenType.UNKNOWN})


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Pieces by id, with the ids that have a special part to play."""

    texts: tuple[str, ...]
    types: tuple[TokenType, ...]
    ids: dict[str, int]
    bos_id: int | None
    eos_id: int | None
    unknown_id: int | None
    eog_ids: frozenset[int]

    def __len__(self) -> int:
        return len(self.texts)

    def of_type(self, types: frozenset[TokenType]) -> Iterator[tuple[str, int]]:
        """The (text, id) of every token of the given types, by rising id."""
        for index, kind in enumerate(self.types):
            if kind in types:
                yield self.texts[index], index

    @classmethod
    def from_metadata(cls, metadata: Metadata) -> "Vocabulary":
        """Read and check the vocabulary.

        Raises:
            GGUFError: a key is missing, of a wrong type or size, or out of range.
        """
        texts = _texts(metadata)
        ids = _ids(texts)
        types = _types(metadata, texts)
        special = _special_ids(metadata, len(texts))
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
        )


def _special_ids(metadata: Metadata, size: int) -> dict[str, int | None]:
    """The ids that the file's keys give, by the key's first word."""
    spm = tokenizer_model(metadata) is TokenizerModel.SENTENCEPIECE
    ids: dict[str, int | None] = {}
    for name, default in (("unknown", 0), ("bos", 1), ("eos", 2), ("eot", None), ("eom", None)):
        id_ = metadata.get_index(f"{PREFIX}{name}_token_id", size)
        fits = spm and default is not None and default < size
        ids[name] = default if id_ is None and fits else id_
    return ids


def tokenizer_model(metadata: Metadata) -> TokenizerModel:
    """The family of tokenizer that the file asks for."""
    name = metadata.get_string(PREFIX + "model")
    try:
        return TokenizerModel(name)
    except ValueError:
        supported = ", ".join(TokenizerModel)
        raise GGUFError(f"{PREFIX}model is {name!r:.60}, supported are: {supported}") from None


def _texts(metadata: Metadata) -> tuple[str, ...]:
    texts = metadata.get_strings(PREFIX + "tokens")
    if not texts:
        raise GGUFError(f"{PREFIX}tokens is empty, expected at least one token")
    return tuple(text or f"[EMPTY_{index}]" for index, text in enumerate(texts))


def _ids(texts: tuple[str, ...]) -> dict[str, int]:
    ids = {text: index for index, text in enumerate(texts)}
    if len(ids) < len(texts):
        first = next(index for index, text in enumerate(texts) if ids[text] != index)
        raise GGUFError(
            f"{PREFIX}tokens holds {texts[first]!r:.60} twice, as ids {first} and "
            f"{ids[texts[first]]}; every token must be there once"
        )
    return ids


def _types(metadata: Metadata, texts: tuple[str, ...]) -> list[TokenType]:
    numbers = metadata.get_ints(PREFIX + "token_type", size=len(texts)).tolist()
    known = {int(kind): kind for kind in TokenType}
    unknown = set(numbers) - known.keys()
    if unknown:
        raise GGUFError(
            f"{PREFIX}token_type holds {min(unknown)}, expected {min(known)}..{max(known)}"
        )
    types = [known[number] for number in numbers]
    for index, (text, kind) in enumerate(zip(texts, types, strict=True)):
        if kind is TokenType.BYTE and not _BYTE.fullmatch(text):
            raise GGUFError(f"{PREFIX}tokens[{index}] is {text!r:.60}, a BYTE, expected <0xXX>")
    return types


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
