r"""How BPE models with merges cut a text into words before merging.

A table: llama.cpp's names of pre-tokenizers (`tokenizer.ggml.pre`) and the
regular expressions that each stands for. Knows nothing of vocabularies or merges.

The patterns are applied one after the other, each within the pieces that the
one before left; a match is a piece, and so is what lies between two matches.
They are llama.cpp's (`llama_tokenizer_bpe` of src/llama-vocab.cpp, and the hand-written
splitters of src/unicode.cpp), but for `tekken`'s and `gpt-4o`'s, which are those of the
models' tokenizer.json: llama.cpp's cut marks from their letters (each vowel sign of
Hindi a word) and tell upper from lower case in ASCII only. `smaug-bpe` takes whole words, which
llama.cpp's does not. Others differ from their models' as
llama.cpp's do: `youtu` and `tiny_aya` know no case at all, and `afmoe` takes what stands
before a number along with its first digits. Where llama.cpp's has nested repetitions an equal
one without them stands here.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum, auto

from kvcache.errors import EmberError, quoted
from models.assumptions import Assumptions
from models.gguf.metadata import Metadata

_CONTRACTION = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_BEFORE_WORD = r"[^\r\n\p{L}\p{N}]?"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SIGNS_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_LETTERS_MARKS = r"[\p{L}\p{M}]"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|{_BEFORE_WORD}\p{{L}}+|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|{_BEFORE_WORD}\p{{L}}+|\p{{N}}|{_SIGNS}|{_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTION}|{_BEFORE_WORD}{_LETTERS_MARKS}+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
_NO_CASE = r"\p{Lm}\p{Lo}\p{M}"
_UPPER = rf"[\p{{Lu}}\p{{Lt}}{_NO_CASE}]"
_LOWER = rf"[\p{{Ll}}{_NO_CASE}]"
_TEKKEN = (
    rf"{_BEFORE_WORD}{_UPPER}*{_LOWER}+|{_BEFORE_WORD}{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}|{_SIGNS_SLASH}|{_SPACES}"
)
_GPT4O = (
    rf"{_BEFORE_WORD}{_UPPER}*{_LOWER}+(?:{_CONTRACTION})?"
    rf"|{_BEFORE_WORD}{_UPPER}+{_LOWER}*(?:{_CONTRACTION})?"
    rf"|\p{{N}}{{1,3}}|{_SIGNS_SLASH}|{_SPACES}"
)
_GRANITE_97M = _GPT4O.replace(_UPPER, r"[\p{L}\p{M}&&[^a-z]]").replace(
    _LOWER, r"[\p{L}\p{M}&&[^A-Z]]"
)
_ANY_CASE = rf"{_BEFORE_WORD}{_LETTERS_MARKS}+(?:{_CONTRACTION})?"

_DIGIT = r"\p{N}"
_DIGITS_3 = r"\p{N}{1,3}"
# Digits in groups of three from the right, the first group with all that is before it.
_DIGITS_FROM_RIGHT = r"(?:\A|(?<=\p{N}))\P{N}*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
_LINES = r"[^\n]+|\n+"
_HAN_KANA = r"[\u4E00-\u9FA5\u3040-\u30FF]+"
_HAN_HANGUL = r"[\u0800-\u9FA5\uAC00-\uD7FF&&[^\s]]+"
_ASCII_WORD = r"[!-/:-@\[-`{-~][A-Za-z]+"
_DEEPSEEK3_WORD = r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_DEEPSEEK3 = rf"{_ASCII_WORD}|{_DEEPSEEK3_WORD}| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
_SPARK = rf"{_ASCII_WORD}|{_DEEPSEEK3_WORD}| ?[\p{{P}}\p{{S}}]+|[\r\n]|\s+(?!\S)|\s+"
# The letters with case of Unicode's older versions, less those of mathematics.
_DEEPSEEK_LETTER = (
    r"[[\p{Lu}\p{Ll}\p{Lt}]&&[^\u0560-\u0588\u10C7-\u10FF\u1C80-\u1C8F\u2D00-\u2D2F"
    r"\uA790-\uA7FF\uAB30-\uAB6F\x{10570}-\x{105BF}\x{10D00}-\x{10DFF}"
    r"\x{16E00}-\x{16EFF}\x{1D400}-\x{1DFFF}]]"
)
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?{_DEEPSEEK_LETTER}+",
    r"\s?[!-/:-~\uFF01-\uFF0F\uFF1A-\uFF5E\u2018-\u201F\u3001\u3002]+",
    r"\s+\z",
    _HAN_HANGUL,
    r"\p{N}+",
)
_BLOOM = r" ?[^(\s|.,!?\u2026\u3002\uFF0C\u3001\u0964\u06D4\u060C)]+"
_YOUTU_SCRIPTS = (
    r"[\uAC00-\uD7A3\u3131-\u318E]+"
    r"|[\uFF01\u2026\u201C\u201D\u2018\u2019\u2014\uFF1A\uFF1B\uFF0C\u3001-\u303F\uFE30-\uFE4F]+"
    rf"|[\u3105-\u312F]+|{_HAN_KANA}"
)
_AFMOE_SCRIPTS = (
    r"[\u4E00-\u9FFF\u3400-\u4DBF\u8C48-\uFAFF\u3040-\u30FF\uFF65-\uFF9F\u2F00-\u2FDF"
    r"\u0E40-\u0EFF\u1780-\u17FF\u1000-\u109F\uAA60-\uAA7F\uA9E0-\uA9FF\uAC00-\uD7AF"
    r"\u1100-\u11FF]+"
)
_CHAMELEON = (
    r"<sentinel:[0-9]+>",
    r"IMGIMG[A-I]{1,4}Z",
    r"[\t\n]|    |  ",
    _DIGIT,
    r"[\p{P}!-/:-@\[-`{-~]",
    _GPT2,
)
_EXAONE_MOE = (
    rf"{_CONTRACTION}|{_BEFORE_WORD}\p{{L}}\p{{M}}*(?: ?\p{{L}}\p{{M}}*)*|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|{_SPACES}"
)
_RUNS_OF_SPACES = "|".join(rf"\s{{{1 << power}}}(?!\S)" for power in range(9, 1, -1))
_JAIS2 = (
    rf"{_CONTRACTION}|{_BEFORE_WORD}\p{{L}}+|{_DIGITS_3}|{_SIGNS}|\s*[\r\n]+"
    rf"|{_RUNS_OF_SPACES}|\s{{1,2}}(?!\S)|\s"
)
_SEED_CODER = rf"{_CONTRACTION}|{_BEFORE_WORD}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"
_HAN = (
    r"\u4E00-\u9FFF\u3400-\u4DBF\uF900-\uFAFF\x{20000}-\x{2A6DF}\x{2A700}-\x{2EBEF}"
    r"\x{2F800}-\x{2FA1F}"
)
_KIMI_K2 = (
    rf"[{_HAN}]+|{_BEFORE_WORD}[\p{{L}}&&[^{_HAN}]]+(?:{_CONTRACTION})?"
    rf"|{_DIGITS_3}|{_SIGNS}|{_SPACES}"
)


class Spelling(Enum):
    """How the pieces of a vocabulary with merges spell a text."""

    BYTES = auto()
    """Each byte as one character of GPT-2's alphabet."""
    TEXT = auto()
    """As it is."""
    SPACES = auto()
    """As it is, with U+2581 for a space."""
    SPACED_WORDS = auto()
    """As SPACES, and a space before each line that begins without one."""


@dataclass(frozen=True, kw_only=True)
class PreTokenizer:
    """One way to cut words, and what llama.cpp ties to its name."""

    patterns: tuple[str, ...]
    spelling: Spelling = Spelling.BYTES
    ignore_merges: bool = False
    """A word that is a token as a whole is taken whole, whatever the merges say."""
    whole_newlines: bool = False
    """Line feeds that are a token together are taken whole, whatever the merges say."""
    adds_bos: bool = False
    """The default of `tokenizer.ggml.add_bos_token`."""
    needs_bos: bool = False
    """A bos is put before a text even where the file says not to."""


_NAMES: tuple[tuple[str, PreTokenizer], ...] = (
    (
        "default",
        PreTokenizer(patterns=(r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    ),
    (
        "gpt-2 phi-2 mpt olmo jais trillion granite-docling gigachat a.x-4.0 mellum exaone4 "
        "jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code roberta-bpe modern-bert",
        PreTokenizer(patterns=(_GPT2,)),
    ),
    (
        "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
        PreTokenizer(patterns=(_DIGIT, _GPT2)),
    ),
    (
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        PreTokenizer(patterns=(_LLAMA3,), ignore_merges=True, adds_bos=True),
    ),
    ("dbrx chatglm-bpe", PreTokenizer(patterns=(_LLAMA3,))),
    # SmolLM3 is smaug-bpe: Llama 3's vocabulary, of which merges do not make every word.
    ("glm4 glm5 smaug-bpe", PreTokenizer(patterns=(_LLAMA3,), ignore_merges=True)),
    (
        "qwen2 deepseek-r1-qwen stablelm2 hunyuan megrez grok-2 solar-open kormo f2llmv2 "
        "bailingmoe bailingmoe2 llada-moe",
        PreTokenizer(patterns=(_QWEN2,)),
    ),
    ("qwen35", PreTokenizer(patterns=(_QWEN35,))),
    ("ufakzeka", PreTokenizer(patterns=(_QWEN2.removeprefix(f"{_CONTRACTION}|"),))),
    ("laguna", PreTokenizer(patterns=(_LINES, _QWEN2))),
    (
        "minicpm5",
        PreTokenizer(
            patterns=(_DIGITS_3, _QWEN2.replace(r"\p{N}|", r"\p{N}+|")), ignore_merges=True
        ),
    ),
    ("tekken", PreTokenizer(patterns=(_TEKKEN,), ignore_merges=True, adds_bos=True)),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", PreTokenizer(patterns=(_GPT4O,))),
    ("granite-embed-multi-97m", PreTokenizer(patterns=(_GRANITE_97M,), ignore_merges=True)),
    (
        "tiny_aya cohere2moe",
        PreTokenizer(
            patterns=(
                _DIGITS_FROM_RIGHT,
                rf"{_ANY_CASE}|{_DIGITS_3}|{_SIGNS_SLASH}|{_SPACES}",
            )
        ),
    ),
    (
        "youtu",
        PreTokenizer(
            patterns=(_YOUTU_SCRIPTS, rf"{_ANY_CASE}|\p{{N}}|{_SIGNS_SLASH}|{_SPACES}"),
            ignore_merges=True,
        ),
    ),
    ("kimi-k2", PreTokenizer(patterns=(_KIMI_K2,))),
    ("deepseek-llm", PreTokenizer(patterns=_DEEPSEEK_LLM)),
    (
        "deepseek-coder",
        PreTokenizer(patterns=(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_HANGUL, _DIGIT)),
    ),
    (
        "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
        PreTokenizer(patterns=(_DIGITS_3, _HAN_KANA, _DEEPSEEK3)),
    ),
    ("spark2_5", PreTokenizer(patterns=(_DIGITS_3, _HAN_KANA, _SPARK, _DIGIT))),
    ("afmoe", PreTokenizer(patterns=(_DIGITS_FROM_RIGHT, _AFMOE_SCRIPTS, _DEEPSEEK3))),
    ("falcon", PreTokenizer(patterns=(r"[\p{P}$+<=>^~|`]+", _GPT2, r"[0-9][0-9][0-9]"))),
    ("chameleon", PreTokenizer(patterns=_CHAMELEON, adds_bos=True)),
    ("bloom gpt3-finnish poro-chat", PreTokenizer(patterns=(_BLOOM,))),
    ("viking", PreTokenizer(patterns=(_BLOOM, _DIGIT))),
    (
        "superbpe",
        PreTokenizer(patterns=(r"\p{N}+", r"(?=(?:[0-9]{3})+(?![0-9]))")),
    ),
    ("seed-coder", PreTokenizer(patterns=(_SEED_CODER,))),
    ("exaone-moe", PreTokenizer(patterns=(_EXAONE_MOE,))),
    ("jais-2", PreTokenizer(patterns=(_JAIS2,))),
    (
        "gemma4 granite-embed-multi-311m",
        PreTokenizer(
            patterns=(_LINES,),
            spelling=Spelling.SPACES,
            whole_newlines=True,
            adds_bos=True,
            needs_bos=True,
        ),
    ),
    ("sarvam-moe", PreTokenizer(patterns=(_LINES,), spelling=Spelling.SPACES)),
    (
        "mmbert",
        PreTokenizer(
            patterns=(_LINES, "\u2581[^\u2581]*"),
            spelling=Spelling.SPACED_WORDS,
            whole_newlines=True,
        ),
    ),
    ("whitespace", PreTokenizer(patterns=(r"\S+",), spelling=Spelling.TEXT)),
)

PRE_TOKENIZERS = {name: pre for names, pre in _NAMES for name in names.split()}
_KEY = "tokenizer.ggml.pre"


def named(name: str) -> PreTokenizer:
    """The pre-tokenizer of llama.cpp's `name`. Raises EmberError, with names that are close."""
    if name in PRE_TOKENIZERS:
        return PRE_TOKENIZERS[name]
    close = get_close_matches(name, PRE_TOKENIZERS, n=5, cutoff=0.4) or sorted(PRE_TOKENIZERS)
    raise EmberError(f"got pre-tokenizer {quoted(name)}, expected one such as {', '.join(close)}")


def of_file(metadata: Metadata, assumed: Assumptions) -> PreTokenizer:
    """The pre-tokenizer that a file names; the default where it names none that is known."""
    name = metadata.get_string(_KEY, "")
    if name not in PRE_TOKENIZERS:
        assumed.add(
            f"{_KEY} is {quoted(name)}" if name else f"{_KEY} is missing",
            "ANSWERS MAY BE WORSE, text is cut by llama.cpp's default; "
            "--pretokenizer NAME cuts it otherwise",
        )
    return PRE_TOKENIZERS.get(name, PRE_TOKENIZERS["default"])
