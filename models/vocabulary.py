"""The vocabulary of a GGUF file: its pieces, their types, and the special ids.

Knows nothing of how text becomes pieces. Keys and their defaults follow the
GGUF specification and llama.cpp's loader.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from models.errors import GGUFError
from models.metadata import Metadata

PREFIX = "tokenizer.ggml."

# Texts that llama.cpp takes for the end of a turn, whatever the file's keys say.
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
    }
)


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
        ends = {id_ for name in ("eos", "eot", "eom") if (id_ := special[name]) is not None}
        by_text = _ends_by_text(ids, types)
        return cls(
            texts=texts,
            types=tuple(
                TokenType.CONTROL if index in by_text else kind for index, kind in enumerate(types)
            ),
            ids=ids,
            bos_id=special["bos"],
            eos_id=special["eos"],
            unknown_id=special["unknown"],
            eog_ids=by_text | ends,
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


def _ends_by_text(ids: dict[str, int], types: list[TokenType]) -> frozenset[int]:
    """Ids of the end-of-generation texts, all of them control tokens from here on.

    Fine-tunes often add `<|im_end|>` as user-defined; llama.cpp makes it a control
    token, and so does this. A normal piece of text that looks like one stays as it is.
    """
    special = (TokenType.CONTROL, TokenType.USER_DEFINED)
    found = (ids[text] for text in END_OF_GENERATION_TEXTS & ids.keys())
    return frozenset(id_ for id_ in found if types[id_] in special)
