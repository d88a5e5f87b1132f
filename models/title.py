"""Names of models for people: `SmolLM2 135M Instruct` and `Q4_1`.

A file says its name in its metadata, and has one where it lies; either may be a path, a hash or
a word that says nothing. What comes out is one line that can be read, and never empty. Knows no
catalogue and no folder.
"""

import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.gguf.header import TensorInfo
    from models.gguf.metadata import Metadata

# By ggml's numbers of what most weights are (`general.file_type`), as people say them.
FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    32: "BF16",
    38: "MXFP4",
}
_MOST = 60  # characters
_QUANTIZATION = r"(?:IQ|TQ|Q)\d(?:_\w+)?|B?F16|F32|MXFP4(?:_MOE)?"
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_STORED = re.compile(rf"[-._ ]({_QUANTIZATION})$", re.IGNORECASE)
_ENDING = re.compile(rf"[-._ ](?:(?:UD-|i1-)?(?:{_QUANTIZATION})|gguf|ggml|imat)$", re.IGNORECASE)
# Words that conversions leave where nobody has named a model.
_NOTHING = frozenset(
    (
        *("checkpoint", "data", "gguf", "ggml", "hf", "home", "llama", "llm", "main", "merged"),
        *("model", "models", "none", "out", "output", "root", "snapshots", "test", "tmp"),
        *("unknown", "unnamed", "weights", "workspace"),
    )
)
_HASH = re.compile(r"(?:sha256-)?[0-9a-f]{12,}")
_SIZE = re.compile(r"(?:\d+x)?\d+(?:\.\d+)?[bm]")
_WORD = re.compile(r"[a-z]{3,}[0-9.]*")


def title(metadata: "Metadata", stem: str) -> str:
    """What a model is called. stem: the file's name, without its ending."""
    for key in ("general.name", "general.basename"):
        value = metadata.get(key)
        if isinstance(value, str) and (said := _readable(value)):
            return said
    architecture = metadata.get("general.architecture")
    return readable(stem, architecture if isinstance(architecture, str) else "")


def readable(stem: str, otherwise: str = "") -> str:
    """A file's name without its ending as a title; `otherwise` where it says nothing."""
    stem = _SHARD.sub("", stem)
    while (shorter := _ENDING.sub("", stem)) != stem:
        stem = shorter
    return _readable(stem) or _line(otherwise) or "a model"


def of_file(name: str) -> str:
    """The title of a file that nobody has opened, by its name."""
    stem = _SHARD.sub("", name.removesuffix(".gguf"))
    stored = _STORED.search(stem)
    return titled(readable(stem), stored[1].upper() if stored else "")


def quantization(metadata: "Metadata", tensors: "Iterable[TensorInfo]") -> str:
    """How most weights are stored, as the file says it, else by its tensors."""
    kind = metadata.get("general.file_type")
    if isinstance(kind, int) and not isinstance(kind, bool) and kind in FILE_TYPES:
        return FILE_TYPES[kind]
    by_type: Counter[str] = Counter()
    for info in tensors:
        by_type[info.type.name] += info.nbytes
    return by_type.most_common(1)[0][0] if by_type else ""


def titled(name: str, stored: str) -> str:
    """Both in one: `SmolLM2 135M Instruct · Q4_1`."""
    return f"{name} · {stored}" if stored else name


def _readable(name: str) -> str:
    """A name in words; empty where it says nothing."""
    last = _line(name).rstrip("/").rpartition("/")[2].removesuffix(".gguf")
    # What has no spaces was written for programs.
    words = last.split() if " " in last else list(map(_word, re.split(r"[-_]+", last)))
    # Conversions put the maker's name before a model's that begins with it.
    once = [word for before, word in pairwise(["", *words]) if word != before]
    said = " ".join(filter(None, once))
    bare = last.strip(" ._-").casefold()
    says_nothing = not re.search(r"[^\W_]", said) or bare in _NOTHING or _HASH.fullmatch(bare)
    is_shouted = said.isupper() and said.isalpha()
    return "" if says_nothing or is_shouted else said[:_MOST].rstrip()


def _word(word: str) -> str:
    """Sizes in capitals, and words that nobody has given a capital with one."""
    if _SIZE.fullmatch(word):
        return word.upper()
    return word[0].upper() + word[1:] if _WORD.fullmatch(word) else word


def _line(text: str) -> str:
    """In one line, of what can be seen."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
