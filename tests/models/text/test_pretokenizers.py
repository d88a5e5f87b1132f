"""How each pre-tokenizer cuts words, and how vocabularies whose pieces are text spell them.

Words are those of llama.cpp's own splitter (`unicode_regex_split` of src/unicode.cpp, November
2026) for each name but those of OWN, ids those of llama-cpp-python 0.3.36, computed once.
"""

import json
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from kvcache.errors import EmberError
from models.gguf.metadata import Metadata
from models.text.pretokenizers import PRE_TOKENIZERS, Spelling, named
from models.text.tokenizer import Tokenizer
from models.text.vocabulary import TokenType
from tests.models.text.vocabularies import byte_level, with_scores

DATA = json.loads(
    (Path(__file__).parents[2] / "data" / "pretokenizers.json").read_text(encoding="utf-8")
)
TEXT, WORDS = DATA["text"], DATA["words"]
# The patterns of the models' tokenizer.json, where llama.cpp's are not the same.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE, _AFTER = r"[^\r\n\p{L}\p{N}]?", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
OWN = {
    "tekken": rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}|{_REST}",
    "gpt-4o": rf"{_BEFORE}{_UPPER}*{_LOWER}+{_AFTER}|{_BEFORE}{_UPPER}+{_LOWER}*{_AFTER}"
    rf"|\p{{N}}{{1,3}}|{_REST}",
}


def cut(text: str, name: str) -> list[str]:
    """The words that a pre-tokenizer makes."""
    patterns = PRE_TOKENIZERS[name].patterns
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return [word for word, _ in pre_tokenizers.Sequence(splits).pre_tokenize_str(text)]


@pytest.mark.parametrize("name", WORDS)
def test_words_are_llama_cpps(name: str) -> None:
    assert cut(TEXT, name) == WORDS[name]


@pytest.mark.parametrize("name", OWN)
@given(text=st.text() | st.text("aZßЖжǅʰकि\u0301中1!/' \n"))
@example(text=TEXT)
def test_words_are_the_models_own(name: str, text: str) -> None:
    own = pre_tokenizers.Split(Regex(OWN[name]), "isolated")
    assert cut(text, name) == [word for word, _ in own.pre_tokenize_str(text)]


def test_marks_stay_with_letters_and_capitals_begin_a_word() -> None:
    assert cut("helloWorldЖЖжЖ हिन्दी/\n", "tekken") == [
        "hello",
        "World",
        "ЖЖж",
        "Ж",
        " हिन्दी",
        "/\n",
    ]


def test_every_way_of_cutting_bytes_has_its_words() -> None:
    covered = {PRE_TOKENIZERS[name].patterns for name in (*WORDS, *OWN)}
    in_bytes = {pre.patterns for pre in PRE_TOKENIZERS.values() if pre.spelling is Spelling.BYTES}
    assert in_bytes == covered


@given(name=st.sampled_from(sorted(PRE_TOKENIZERS)), text=st.text(st.characters(codec="utf-8")))
def test_no_text_is_lost(name: str, text: str) -> None:
    assert "".join(cut(text, name)) == text


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_long_runs_take_no_long_time(name: str) -> None:
    for text in ("a\u0301" * 3000, "1" * 3000, " " * 3000, "\u0416\u4e2d" * 3000, "-\n" * 3000):
        started = time.process_time()
        assert "".join(cut(text, name)) == text
        assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("names", "flags"),
    [
        ("llama-bpe llama3 lfm2 tekken", (True, True)),
        ("glm4 glm5 minicpm5 youtu granite-embed-multi-97m smaug-bpe", (True, False)),
        ("chameleon gemma4", (False, True)),
        ("gpt-2 qwen2 gpt-4o deepseek-v3 viking chatglm-bpe kimi-k2 dbrx", (False, False)),
    ],
)
def test_names_bring_flags(names: str, flags: tuple[bool, bool]) -> None:
    for name in names.split():
        pre = PRE_TOKENIZERS[name]
        assert (pre.ignore_merges, pre.adds_bos) == flags


PIECES = dict.fromkeys(["▁", "a", "b", "\n", "▁a", "▁ab", "ab", "\n\n", "é", "b\n"], 0.0)


def spelled_as_text(name: str) -> Metadata:
    merges = ["▁ a", "▁a b", "a b", "b \n", "\n \n"]
    return with_scores(PIECES, changes={"model": "gpt2", "pre": name, "merges": merges})


@pytest.mark.parametrize("name", ["gemma4", "granite-embed-multi-311m", "sarvam-moe"])
def test_vocabularies_of_text_spell_spaces_and_bytes(name: str) -> None:
    tokenizer = Tokenizer.from_metadata(spelled_as_text(name))
    text = "ab ab\n\n\nab\n a é中b\n\nb"
    ids = [265, 264, 266, 262, 265, 262, 263, 259, 267, 231, 187, 176, 261, 266, 261]
    assert tokenizer.encode(text, add_special=False) == ids
    assert tokenizer.decode(ids) == text


def test_line_feeds_that_are_a_token_are_taken_whole_by_some() -> None:
    for name, expected in (("gemma4", ["\n\n\n"]), ("sarvam-moe", ["\n", "\n", "\n"])):
        keys = with_scores(
            {"\n": 0.0, "\n\n\n": 0.0},
            changes={"model": "gpt2", "pre": name, "merges": ["a b"]},
        )
        tokenizer = Tokenizer.from_metadata(keys)
        ids = tokenizer.encode("\n\n\n", add_special=False)
        assert [tokenizer.text(id_) for id_ in ids] == expected


def test_some_put_a_space_before_each_line_or_spell_it_as_a_byte() -> None:
    lines = Tokenizer.from_metadata(spelled_as_text("mmbert"))
    assert lines.encode("ab\n a", add_special=False) == [264, 262, 263]
    plain = Tokenizer.from_metadata(spelled_as_text("whitespace"))
    assert plain.encode("ab a", add_special=False) == [265, 35, 260]
    assert plain.decode([265, 35, 260]) == "ab a"


def test_a_file_without_a_known_name_is_cut_by_the_default_and_says_so() -> None:
    for name, said in (
        ("nosuch\x1b", r"is 'nosuch\x1b'"),
        ("x" * 61, f"is '{'x' * 36}...{'x' * 19}'"),
        ("", "is missing"),
        (None, "is missing"),
    ):
        tokenizer = Tokenizer.from_metadata(byte_level(changes={"pre": name}))
        (note,) = tokenizer.notes
        assert note.startswith(f"tokenizer.ggml.pre {said}: ANSWERS MAY BE WORSE")
        assert "--pretokenizer NAME" in note
        ids = tokenizer.encode("1234", add_special=False)
        assert ids == Tokenizer.from_metadata(byte_level(changes={"pre": "default"})).encode("1234")


def test_a_long_name_is_quoted_to_its_end() -> None:
    with pytest.raises(EmberError, match=r"got pre-tokenizer 'x+\.\.\.x+', expected one such as"):
        named("x" * 61)


def test_a_given_name_goes_before_the_files() -> None:
    word = {"1234": TokenType.NORMAL}
    for pre in ("nosuch", "gpt-2", None):
        keys = byte_level(special=word, changes={"pre": pre, "add_bos_token": False})
        tokenizer = Tokenizer.from_metadata(keys, "youtu")
        assert tokenizer.notes == ()
        assert tokenizer.encode("a1234 12") == list(b"a1234 12")
    by_name = Tokenizer.from_metadata(byte_level(["1 2"], changes={"pre": "smollm"}), "gpt-2")
    assert by_name.encode("12") == [256]


def test_a_given_name_is_of_no_use_to_a_model_with_scores() -> None:
    tokenizer = Tokenizer.from_metadata(with_scores(PIECES), "llama-bpe")
    assert tokenizer.notes == ("--pretokenizer: of no use to this model, which has scores",)


def test_an_unknown_name_brings_those_that_are_close() -> None:
    with pytest.raises(EmberError, match=r"got pre-tokenizer 'lama-bpe', .* as llama-bpe, "):
        named("lama-bpe")
    with pytest.raises(EmberError, match=r"got pre-tokenizer '\\x1b\[2J', .* as a.x-4.0, afmoe, "):
        named("\x1b[2J")
    with pytest.raises(EmberError, match="got pre-tokenizer 'x'"):
        Tokenizer.from_metadata(byte_level(), "x")
