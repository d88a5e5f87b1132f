r"""How byte-level BPE models cut a text into words before merging.

A table: llama.cpp's names of pre-tokenizers (`tokenizer.ggml.pre`) and the
regular expressions that each stands for. Knows nothing of vocabularies.

The patterns are applied one after the other, each within the pieces that the
one before left; a match is a piece, and so is what lies between two matches.
They are llama.cpp's, not those of the models' tokenizer.json: `tekken` tells
upper from lower case in ASCII only, and takes no combining marks for letters.
"""

from dataclasses import dataclass

from models.errors import GGUFError

_CONTRACTION = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_UPPER = r"[\p{L}&&[^a-z]]"
_LOWER = r"[\p{L}&&[^A-Z]]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)


@dataclass(frozen=True, kw_only=True)
class PreTokenizer:
    """One way to cut words, and what llama.cpp ties to its name."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    """A word that is a token as a whole is taken whole, whatever the merges say."""
    adds_bos: bool = False
    """The default of `tokenizer.ggml.add_bos_token`."""


_DEFAULT = PreTokenizer(patterns=(r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"))

_NAMES: tuple[tuple[str, PreTokenizer], ...] = (
    ("default", _DEFAULT),
    (
        "gpt-2 phi-2 mpt olmo jais trillion granite-docling gigachat a.x-4.0 mellum exaone4",
        PreTokenizer(patterns=(_GPT2,)),
    ),
    (
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
        PreTokenizer(patterns=(r"\p{N}", _GPT2)),
    ),
    (
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2",
        PreTokenizer(patterns=(_LLAMA3,), ignore_merges=True, adds_bos=True),
    ),
    ("dbrx smaug-bpe glm4 chatglm-bpe", PreTokenizer(patterns=(_LLAMA3,))),
    (
        "qwen2 deepseek-r1-qwen stablelm2 hunyuan megrez grok-2 solar-open kormo",
        PreTokenizer(patterns=(_QWEN2,)),
    ),
    ("tekken", PreTokenizer(patterns=(_TEKKEN,), ignore_merges=True, adds_bos=True)),
)

PRE_TOKENIZERS = {name: pre for names, pre in _NAMES for name in names.split()}


def pre_tokenizer(name: str) -> PreTokenizer:
    """The pre-tokenizer of llama.cpp's `name`; an empty one means "default".

    Raises:
        GGUFError: the name is not in the table.
    """
    try:
        return PRE_TOKENIZERS[name or "default"]
    except KeyError:
        supported = ", ".join(sorted(PRE_TOKENIZERS))
        raise GGUFError(f"tokenizer.ggml.pre is {name!r:.60}, supported are: {supported}") from None
