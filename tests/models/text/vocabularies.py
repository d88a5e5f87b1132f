"""GGUF metadata for tokenizer tests: made by hand, or read from real files."""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from models.gguf.file import GGUFFile
from models.gguf.metadata import Metadata, MetadataValue
from models.text.bpe import BYTE_ALPHABET
from models.text.vocabulary import PREFIX, TokenType

Keys = dict[str, MetadataValue | None]
TRUTH = Path(__file__).parents[2] / "data" / "smollm2_truth.json"


def truth() -> dict[str, Any]:
    """What llama.cpp says of SmolLM2."""
    content: dict[str, Any] = json.loads(TRUTH.read_text(encoding="utf-8"))
    return content


def _metadata(model: str, rows: Iterable[tuple[str, TokenType, float]], changes: Keys) -> Metadata:
    texts, types, scores = zip(*rows, strict=True)
    keys: Keys = {
        "model": model,
        "tokens": list(texts),
        "token_type": np.array(types, np.int32),
        "scores": np.array(scores, np.float32),
    }
    keys |= changes
    return Metadata({PREFIX + name: value for name, value in keys.items() if value is not None})


def byte_level(
    pairs: Iterable[str] = (),
    *,
    special: Mapping[str, TokenType] | None = None,
    without: str = "",
    changes: Keys | None = None,
) -> Metadata:
    """All bytes but those of the characters `without`, merged pairs, then specials.

    `changes` replace keys of `tokenizer.ggml`; None leaves a key out.
    """
    pairs = list(pairs)
    texts = [character for character in BYTE_ALPHABET if character not in without]
    texts += dict.fromkeys(pair.replace(" ", "") for pair in pairs)
    rows = [(text, TokenType.NORMAL, 0.0) for text in texts]
    rows += [(text, kind, 0.0) for text, kind in (special or {}).items()]
    return _metadata("gpt2", rows, {"pre": "gpt-2", "merges": pairs, **(changes or {})})


def with_scores(
    pieces: Mapping[str, float],
    *,
    special: Mapping[str, TokenType] | None = None,
    byte_fallback: bool = True,
    changes: Keys | None = None,
) -> Metadata:
    """<unk>, <s>, </s>, 256 bytes, the pieces with their scores, then specials.

    `changes` replace keys of `tokenizer.ggml`; None leaves a key out.
    """
    rows = [("<unk>", TokenType.UNKNOWN, 0.0)]
    rows += [(text, TokenType.CONTROL, 0.0) for text in ("<s>", "</s>")]
    if byte_fallback:
        rows += [(f"<0x{byte:02X}>", TokenType.BYTE, 0.0) for byte in range(256)]
    rows += [(text, TokenType.NORMAL, score) for text, score in pieces.items()]
    rows += [(text, kind, 0.0) for text, kind in (special or {}).items()]
    return _metadata("llama", rows, changes or {})


def from_sentencepiece(processor: sentencepiece.SentencePieceProcessor) -> Metadata:
    """The keys that a converter writes for a SentencePiece model."""

    def kind(id_: int) -> TokenType:
        if processor.is_unknown(id_):
            return TokenType.UNKNOWN
        if processor.is_control(id_):
            return TokenType.CONTROL
        return TokenType.BYTE if processor.is_byte(id_) else TokenType.NORMAL

    rows = [
        (processor.id_to_piece(id_), kind(id_), processor.get_score(id_))
        for id_ in range(processor.vocab_size())
    ]
    return _metadata("llama", rows, {})


@cache
def metadata_of(path: Path) -> Metadata:
    """The metadata of a GGUF file."""
    with GGUFFile(path) as file:
        return file.metadata
