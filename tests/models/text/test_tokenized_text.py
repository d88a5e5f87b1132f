"""TokenizedText: the ids of a changed text are those of the text, and little is done for them."""

from collections.abc import Callable, Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.text.tokenized_text import TokenizedText
from models.text.tokenizer import TextPart, Tokenizer
from models.text.vocabulary import TokenType
from tests.models.text.vocabularies import Keys, byte_level, with_scores

# Some may lie over each other in a text, some hold others.
SPECIAL = dict.fromkeys(("<s>", "</s>", "<a>", "<a><b>", "b><a", "<c>", "ab<"), TokenType.CONTROL)
DEFINED = dict.fromkeys(("<d>", "  ", "d>a"), TokenType.USER_DEFINED)
# Its special tokens take the spaces after them, the other's those before them too.
PHI_3 = dict.fromkeys(("<|end|>", "<|placeholder1|>"), TokenType.CONTROL)
PHI_4 = dict.fromkeys(("<|im_sep|>", "<|dummy_87|>"), TokenType.CONTROL)
# After all bytes and the merges.
BOS: Keys = {"bos_token_id": 261, "add_bos_token": True}
MERGES = ("a b", "ab c", "Ġ a", "c c", "b c")
PIECES = {"a": -9.0, "b": -9.0, "ab": -2.0, "abc": -3.0, "▁": -8.0, "▁a": -1.0, "▁ab": -1.5}
TOKENIZERS = {
    "bytes": byte_level(MERGES, special=SPECIAL | DEFINED),
    "bytes with a bos": byte_level(MERGES, special=SPECIAL, changes=BOS),
    "scores": with_scores(PIECES, special=SPECIAL | DEFINED),
    "scores, no space": with_scores(PIECES, changes={"add_space_prefix": False}),
    "scores, unknown": with_scores(PIECES, byte_fallback=False),
    "scores, spaces taken": with_scores(PIECES, special=SPECIAL | DEFINED | PHI_3),
    "bytes, spaces taken": byte_level(MERGES, special=SPECIAL | DEFINED | PHI_3),
    "bytes, spaces taken on both sides": byte_level(MERGES, special=SPECIAL | DEFINED | PHI_4),
}


@pytest.fixture(params=TOKENIZERS, scope="module")
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.from_metadata(TOKENIZERS[request.param])


def expected(tokenizer: Tokenizer, text: str) -> list[int]:
    """The whole of a text, with one bos and no eos."""
    ids = tokenizer.encode(text, add_special=False)
    if tokenizer.adds_bos and ids[:1] != [tokenizer.bos_id]:
        return [tokenizer.bos_id or 0, *ids]
    return ids


FRAGMENTS = (*SPECIAL, *DEFINED, *"<>abcd ", "ab", "abc ", "\n", "é", "\ud800", "🙂", " \n\t")
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join)


@given(texts=st.lists(TEXTS, max_size=6), cut=st.integers(0, 30))
@example(texts=["<a>", "<a><b>", "<a><b><a"], cut=2)
@example(texts=["<s>a", "a<s>", "<s>"], cut=0)
@settings(deadline=None)
def test_the_ids_of_a_changed_text_are_those_of_the_text(
    tokenizer: Tokenizer, texts: list[str], cut: int
) -> None:
    said = TokenizedText.of(tokenizer, "")
    for text in texts:
        # What mostly happens: an end is added, or taken away.
        for each in (text, said.text[:cut] + text, said.text + text):
            said = said.changed_to(each)
            assert (said.text, said.ids) == (each, expected(tokenizer, each))
            assert said == TokenizedText(
                tokenizer=tokenizer,
                text=each,
                ids=said.ids,
                cuts=TokenizedText.of(tokenizer, each).cuts,
                kept=said.kept,
            )
            for at, count in said.cuts[1:]:
                assert said.ids[:count] == expected(tokenizer, each[:at])


# Those that have an id for all that a text may hold.
ALL_KNOWN = ("bytes", "bytes with a bos", "scores", "scores, no space")


@given(text=TEXTS)
@settings(deadline=None)
def test_ids_stand_for_the_bytes_of_a_text(text: str) -> None:
    for name in ALL_KNOWN:
        tokenizer = Tokenizer.from_metadata(TOKENIZERS[name])
        ids = tokenizer.encode(text, add_special=False)
        spelled = b"".join(tokenizer.spellings(ids)).decode()
        assert spelled == text.replace("\ud800", "\ufffd")


@given(text=TEXTS, at=st.integers(0, 40))
@settings(deadline=None)
def test_ids_before_a_place(text: str, at: int) -> None:
    for name in ALL_KNOWN:
        tokenizer = Tokenizer.from_metadata(TOKENIZERS[name])
        said, at = TokenizedText.of(tokenizer, text), min(at, len(text))
        count = said.ids_before(at)
        begins = len(said.ids) - len(tokenizer.encode(text, add_special=False))
        sizes = [len(each) for each in tokenizer.spellings(said.ids[begins:])]
        wanted = len(text[:at].encode(errors="surrogatepass"))
        assert sum(sizes[: count - begins]) >= wanted
        assert count == begins or sum(sizes[: count - begins - 1]) < wanted


def counted(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Tells how many characters were tokenized since it was asked last."""
    lengths: list[int] = []
    parts = tokenizer.parts

    def counting(text: str, *, after: int | None) -> Iterator[TextPart]:
        lengths.append(len(text))
        return parts(text, after=after)

    def taken() -> int:
        total = sum(lengths)
        lengths.clear()
        return total

    monkeypatch.setattr(tokenizer, "parts", counting)
    return taken


def test_what_stands_before_a_change_is_not_tokenized_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = Tokenizer.from_metadata(byte_level(MERGES, special={"</s>": TokenType.CONTROL}))
    tokenized = counted(tokenizer, monkeypatch)
    turn = "abc ab</s>"
    said = TokenizedText.of(tokenizer, turn * 97)
    assert tokenized() == 970
    said = said.changed_to(turn * 98 + "a")
    assert (tokenized(), said.kept) == (11, 970)
    said = said.changed_to(turn * 98 + "ab")
    assert (tokenized(), said.kept) == (2, 980)
    said = said.changed_to(turn * 50 + "cc</s>" + turn * 2)
    assert (tokenized(), said.kept) == (26, 500)
    # A token that a longer one may swallow is no place to cut at.
    other = Tokenizer.from_metadata(byte_level(special=SPECIAL))
    assert TokenizedText.of(other, "a<a>c</s>a").cuts == [(0, 0), (9, 4)]


def test_a_models_own_ids_are_taken_as_they_are(tokenizer: Tokenizer) -> None:
    asked = TokenizedText.of(tokenizer, "<a>ab")
    ids = [tokenizer.encode(each, add_special=False)[-1] for each in "abc"]
    said = asked.spoken("abc", ids)
    assert (said.text, said.ids) == ("<a>ababc", asked.ids + ids)
    more = said.then("c ab")
    assert more.ids == said.ids + tokenizer.encode("c ab", add_special=False)
    assert more.ids_before(len(asked.text)) == len(asked.ids)
    assert more.ids_before(len(said.text)) == len(said.ids)
    assert said.ids_before(len(asked.text) + 2) == len(asked.ids) + 2


def test_spaces_that_a_token_takes_have_no_ids() -> None:
    tokenizer = Tokenizer.from_metadata(TOKENIZERS["bytes, spaces taken"])
    said = TokenizedText.of(tokenizer, "<|end|>\n ab<|end|> c")
    assert [tokenizer.piece(id_) for id_ in said.ids] == ["<|end|>", "ab", "<|end|>", "c"]
    assert [said.ids_before(at) for at in (7, 8, 9, 10, 11, 18, 19, 20)] == [1, 1, 1, 2, 2, 3, 3, 4]
