"""SentencePiece BPE: ids of the sentencepiece library, and of the rule on hand-made pieces."""

import io
from importlib import resources
from itertools import pairwise

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import GGUFError
from models.text.tokenizer import Tokenizer
from models.text.vocabulary import SPACE, TokenType
from tests.models.text.vocabularies import Keys, from_sentencepiece, with_scores
from tests.patience import within

SCRIPTS = (
    (0x20, 0x7E),
    (0xC0, 0x24F),
    (0x400, 0x4FF),
    (0x590, 0x6FF),
    (0x900, 0xDFF),
    (0x2580, 0x2582),
    (0x3040, 0x30FF),
    (0x4E00, 0x9FFF),
    (0x1F300, 0x1FAFF),
)
NO_PREFIX: Keys = {"add_space_prefix": False}


def mixed_text() -> st.SearchStrategy[str]:
    """Runs of letters of one script, runs of one character, spaces and controls."""
    letters = [
        st.text(st.characters(min_codepoint=low, max_codepoint=high), max_size=8)
        for low, high in SCRIPTS
    ]
    runs = st.builds(
        lambda character, count: character * count,
        st.sampled_from(" -=#*.\n\t_aeo0\u2581") | st.characters(exclude_categories=["Cs"]),
        st.integers(1, 40),
    )
    words = st.sampled_from(["the", " the", "hello", "\n\n", "ing", "1984", "</s>", "<0x0A>"])
    return st.lists(st.one_of(*letters, runs, words), max_size=8).map("".join)


@pytest.fixture(scope="module")
def library() -> sentencepiece.SentencePieceProcessor:
    model = resources.files("mistral_common") / "data" / "tokenizer.model.v1"
    return sentencepiece.SentencePieceProcessor(model_proto=model.read_bytes())


@pytest.fixture(scope="module")
def tokenizer(library: sentencepiece.SentencePieceProcessor) -> Tokenizer:
    return Tokenizer.from_metadata(from_sentencepiece(library))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello, world!",
        " leading",
        "   three spaces   between    and after  ",
        " ",
        " " * 41,
        "tab\tnewline\ncarriage\r\n\n\n",
        "\u2581user text\u2581\u2581with the mark ",
        "👩\u200d👩\u200d👧 🇫🇷 👍🏽",
        "Привет こんにちは مرحبا שלום नमस्ते 한국어",
        "aaaaaaaaaaaaaaaaaaaaaaa ---------- ====",
        "\x00\x01\x7f",
        "def f(x):\n    return x ** 2\n",
    ],
)
def test_same_ids_as_the_library(
    library: sentencepiece.SentencePieceProcessor, tokenizer: Tokenizer, text: str
) -> None:
    ids = tokenizer.encode(text, add_special=False, parse_special=False)
    assert ids == library.encode(text)
    assert tokenizer.encode(text, parse_special=False) == [1, *ids]
    assert tokenizer.decode(ids) == text.replace(SPACE, " ")
    assert tokenizer.decode([1, *ids]) == text.replace(SPACE, " ")


@settings(max_examples=300)
@given(text=mixed_text())
def test_same_ids_as_the_library_on_mixed_scripts(
    library: sentencepiece.SentencePieceProcessor, tokenizer: Tokenizer, text: str
) -> None:
    ids = tokenizer.encode(text, add_special=False, parse_special=False)
    assert ids == library.encode(text)
    assert tokenizer.special_ids.isdisjoint(ids)


@pytest.mark.parametrize("alphabet", ["ab", "abc ", "-="])
def test_same_ids_as_the_library_on_self_overlapping_pieces(alphabet: str) -> None:
    random = np.random.default_rng(11)
    lines = ["".join(random.choice(list(alphabet), 50)) for _ in range(300)]
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=proto,
        model_type="bpe",
        vocab_size=360,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_by_whitespace=False,
        minloglevel=3,
        num_threads=1,
    )
    library = sentencepiece.SentencePieceProcessor(model_proto=proto.getvalue())
    tokenizer = Tokenizer.from_metadata(from_sentencepiece(library))
    for length in range(1, 400):
        text = "".join(random.choice(list(alphabet), length % 37 + 1))
        text += text[-1] * (length % 19)
        assert tokenizer.encode(text, add_special=False) == library.encode(text)


def leftmost_best(text: str, scores: dict[str, float]) -> list[str]:
    """The rule itself: merge the best-scoring pair, the leftmost among equals."""
    symbols = list(text)
    while True:
        joined = [left + right for left, right in pairwise(symbols)]
        best = max((scores[piece] for piece in joined if piece in scores), default=None)
        if best is None:
            return symbols
        at = next(index for index, piece in enumerate(joined) if scores.get(piece) == best)
        symbols[at : at + 2] = [joined[at]]


@given(
    pieces=st.lists(st.text("ab\u2581", min_size=2, max_size=6), unique=True, max_size=12),
    text=st.text("ab ", max_size=30),
)
def test_any_pieces_of_distinct_scores_follow_the_rule(pieces: list[str], text: str) -> None:
    scores = {piece: -float(rank) for rank, piece in enumerate(pieces)}
    letters = {"a": -90.0, "b": -91.0, SPACE: -92.0}
    tokenizer = Tokenizer.from_metadata(with_scores(scores | letters, changes=NO_PREFIX))
    ids = tokenizer.encode(text, add_special=False)
    expected = leftmost_best(text.replace(" ", SPACE), scores)
    assert [tokenizer.text(id_) for id_ in ids] == expected


LETTERS = {SPACE: -90.0, "a": -91.0, "b": -92.0}


def test_runs_of_equal_score_fill_from_the_left() -> None:
    runs = {SPACE * length: -1e9 for length in range(2, 6)}
    tokenizer = Tokenizer.from_metadata(with_scores(LETTERS | runs, changes=NO_PREFIX))
    lengths = [len(tokenizer.piece(id_)) for id_ in tokenizer.encode(" " * 13, add_special=False)]
    assert lengths == [5, 5, 3]


def test_the_space_goes_before_the_first_text_and_after_every_special_token() -> None:
    special = {"[U]": TokenType.USER_DEFINED}
    tokenizer = Tokenizer.from_metadata(with_scores(LETTERS, special=special))
    ids = tokenizer.encode("a</s>b[U]a<s>", add_special=False)
    shown = [tokenizer.piece(id_) for id_ in ids]
    assert shown == [" ", "a", "</s>", " ", "b", "[U]", " ", "a", "<s>"]
    assert tokenizer.encode("</s>a")[:2] == [1, 2]


def test_without_the_prefix_nothing_is_added_or_dropped() -> None:
    tokenizer = Tokenizer.from_metadata(with_scores(LETTERS, changes=NO_PREFIX))
    assert tokenizer.decode(tokenizer.encode(" a")) == " a"
    assert len(tokenizer.encode("a", add_special=False)) == 1


def test_bytes_stand_for_characters_without_a_piece() -> None:
    tokenizer = Tokenizer.from_metadata(with_scores(LETTERS))
    ids = tokenizer.encode("é", add_special=False)
    assert [tokenizer.text(id_) for id_ in ids] == [SPACE, "<0xC3>", "<0xA9>"]
    assert [tokenizer.piece(id_) for id_ in ids] == [" ", r"\xc3", r"\xa9"]
    assert tokenizer.decode(ids) == "é"


def test_a_piece_merges_though_a_letter_of_it_is_no_piece() -> None:
    tokenizer = Tokenizer.from_metadata(with_scores(LETTERS | {"éa": -1.0}, changes=NO_PREFIX))
    ids = tokenizer.encode("éaéb", add_special=False)
    assert [tokenizer.text(id_) for id_ in ids] == ["éa", "<0xC3>", "<0xA9>", "b"]


def test_unknown_where_there_are_no_bytes() -> None:
    tokenizer = Tokenizer.from_metadata(with_scores(LETTERS, byte_fallback=False))
    assert tokenizer.encode("é", add_special=False) == [3, 0]
    assert tokenizer.decode([3, 0]) == ""


def test_plain_text_never_makes_a_control_or_byte_token() -> None:
    steps = ["<s", "<0", "<0x", "<0x0", "<0x0A", "</", "</s"]
    letters = dict.fromkeys("</s>0xA", -50.0)
    scores = letters | {step: -float(rank) for rank, step in enumerate(steps)}
    tokenizer = Tokenizer.from_metadata(with_scores(scores, changes=NO_PREFIX))
    ids = tokenizer.encode("<s></s><0x0A>", add_special=False, parse_special=False)
    assert [tokenizer.text(id_) for id_ in ids] == ["<s", ">", "</s", ">", "<0x0A", ">"]


def test_pieces_with_a_space_inside_are_found_across_words() -> None:
    inner = {"a▁b": -1.0, "▁b": -2.0}
    tokenizer = Tokenizer.from_metadata(with_scores(LETTERS | inner, changes=NO_PREFIX))
    ids = tokenizer.encode("a b b", add_special=False)
    assert [tokenizer.piece(id_) for id_ in ids] == ["a b", " b"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": ["a"] * 262}, "scores is an array of strings, expected an array of numbers"),
        ({"add_space_prefix": "yes"}, "add_space_prefix is 'yes', expected a boolean"),
    ],
    ids=str,
)
def test_damaged_keys_are_named(change: Keys, message: str) -> None:
    with pytest.raises(GGUFError, match=r"tokenizer\.ggml\." + message):
        Tokenizer.from_metadata(with_scores(LETTERS, changes=change))


def test_long_pieces_are_found() -> None:
    runs = {"a" * 2**power: power - 20.0 for power in range(1, 10)}
    tokenizer = Tokenizer.from_metadata(with_scores(LETTERS | runs, changes=NO_PREFIX))
    ids = tokenizer.encode("a" * (512 + 512 + 256 + 4 + 1), add_special=False)
    assert [len(tokenizer.piece(id_)) for id_ in ids] == [512, 512, 256, 4, 1]


def test_a_piece_as_long_as_a_file_takes_no_time() -> None:
    letters = LETTERS | {"ab" * 15_000_000: -1.0, "b" * 15_000_000: -2.0}
    with within(5):
        tokenizer = Tokenizer.from_metadata(with_scores(letters, changes=NO_PREFIX))
        assert len(tokenizer.encode("ab" * 50, add_special=False)) == 100


@given(
    pieces=st.dictionaries(st.text("ab", min_size=2, max_size=6), st.sampled_from([0, -1])),
    text=st.text("ab", max_size=30),
)
def test_the_leftmost_of_pieces_of_one_score_merges_first(
    pieces: dict[str, float], text: str
) -> None:
    keys = with_scores(pieces | {"a": -90.0, "b": -91.0}, changes=NO_PREFIX)
    tokenizer = Tokenizer.from_metadata(keys)
    ids = tokenizer.encode(text, add_special=False)
    assert [tokenizer.text(id_) for id_ in ids] == leftmost_best(text, pieces)


def test_builds_and_encodes_fast(library: sentencepiece.SentencePieceProcessor) -> None:
    keys = from_sentencepiece(library)
    with within(2):
        tokenizer = Tokenizer.from_metadata(keys)
    for text in ("ab " * 33_333, "ab" * 50_000, "Ж" * 50_000, " " * 100_000):
        with within(2):
            assert tokenizer.decode(tokenizer.encode(text)) == text
