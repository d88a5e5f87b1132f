"""SpecialTokens: the longest is cut out first, everywhere, also out of thousands."""

from hypothesis import given
from hypothesis import strategies as st

from models.assumptions import Assumptions
from models.text.special_tokens import SpecialTokens
from models.text.vocabulary import TokenType, Vocabulary
from tests.models.text.vocabularies import byte_level
from tests.patience import within

TYPES = frozenset({TokenType.CONTROL})


def special_tokens(texts: list[str]) -> SpecialTokens:
    """The texts as control tokens, with ids from 256 on."""
    keys = byte_level(special=dict.fromkeys(texts, TokenType.CONTROL))
    return SpecialTokens(Vocabulary.from_metadata(keys, Assumptions()), TYPES)


def one_after_the_other(text: str, texts: list[str]) -> list[str | int]:
    """The rule itself."""
    parts: list[str | int] = [text]
    for special in sorted(texts, key=lambda each: -len(each.encode())):
        cut: list[str | int] = []
        for part in parts:
            pieces = [part] if isinstance(part, int) else part.split(special)
            for number, piece in enumerate(pieces):
                cut += [256 + texts.index(special)] * (number > 0)
                cut.append(piece)
        parts = cut
    return [part for part in parts if part != ""]


@given(
    texts=st.lists(st.text("<ab>é", min_size=2, max_size=6), unique=True, max_size=9),
    text=st.text("<ab>é ", max_size=40),
)
def test_the_longest_is_cut_out_first(texts: list[str], text: str) -> None:
    assert special_tokens(texts).cut_out_of(text) == one_after_the_other(text, texts)


def test_one_that_a_longer_one_may_overlap_does_not_stand_apart() -> None:
    special = special_tokens(["<a>", "<a><b>", "<c>", ">>d", "<<e"])
    assert [special.stands_apart(256 + at) for at in range(5)] == [False, True, False, False, True]


def test_thousands_cost_little() -> None:
    special = special_tokens([f"<unused{number}>" for number in range(6000)] + ["<turn>"])
    text = "Some <b>words</b> of a page, unused. " * 3000 + "<turn>"
    with within(1):
        for _ in range(10):
            assert special.cut_out_of(text) == [text[:-6], 256 + 6000]
