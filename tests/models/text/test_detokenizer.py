"""StreamingDetokenizer: whole characters only, and the same text as `decode`."""

from hypothesis import given
from hypothesis import strategies as st

from models.text.detokenizer import StreamingDetokenizer
from models.text.tokenizer import Tokenizer
from models.text.vocabulary import TokenType
from tests.models.text.vocabularies import Keys, byte_level, with_scores

SPECIAL = {"<|im_end|>": TokenType.CONTROL, "[é]": TokenType.USER_DEFINED}
PIECES = {"▁": -1.0, "▁▁": -2.0, "▁é": -3.0, "é": -4.0, "▁a": -5.0, "日": -6.0}
NO_PREFIX: Keys = {"add_space_prefix": False}
TOKENIZERS = [
    Tokenizer.from_metadata(keys)
    for keys in (
        byte_level(["Ã ©", "Ġ Ã", "Ġ Ġ"], special=SPECIAL),
        with_scores(PIECES, special=SPECIAL),
        with_scores(PIECES, special=SPECIAL, changes=NO_PREFIX),
    )
]


def streamed(tokenizer: Tokenizer, ids: list[int], *, continuing: bool = False) -> list[str]:
    detokenizer = StreamingDetokenizer(tokenizer, continuing=continuing)
    return [*(detokenizer.add(id_) for id_ in ids), detokenizer.finish()]


@st.composite
def tokens(draw: st.DrawFn) -> tuple[Tokenizer, list[int]]:
    tokenizer = draw(st.sampled_from(TOKENIZERS))
    merged = st.integers(255, tokenizer.vocab_size - 1)
    return tokenizer, draw(st.lists(merged | st.integers(0, tokenizer.vocab_size - 1)))


@given(drawn=tokens())
def test_any_ids_stream_to_what_decode_gives(drawn: tuple[Tokenizer, list[int]]) -> None:
    tokenizer, ids = drawn
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


@given(drawn=tokens(), data=st.data())
def test_a_text_split_in_two_goes_on_where_it_stopped(
    drawn: tuple[Tokenizer, list[int]], data: st.DataObject
) -> None:
    tokenizer, ids = drawn
    cut = data.draw(st.integers(0, len(ids)))
    detokenizer = StreamingDetokenizer(tokenizer)
    before = "".join(detokenizer.add(id_) for id_ in ids[:cut])
    assert tokenizer.decode(ids).startswith(before)
    after = "".join(detokenizer.add(id_) for id_ in ids[cut:]) + detokenizer.finish()
    assert before + after == tokenizer.decode(ids)


@given(text=st.text(), which=st.sampled_from(range(len(TOKENIZERS))))
def test_valid_text_streams_in_whole_characters(text: str, which: int) -> None:
    tokenizer = TOKENIZERS[which]
    valid = text.replace("\ufffd", "").replace("\u2581", "").replace("[é]", "")
    shown = streamed(tokenizer, tokenizer.encode(valid, add_special=False, parse_special=False))
    assert "".join(shown) == valid
    assert not any("\ufffd" in part for part in shown)


def test_a_character_comes_with_its_last_byte() -> None:
    tokenizer = TOKENIZERS[0]
    ids = tokenizer.encode("日é!")
    assert streamed(tokenizer, ids) == ["", "", "日", "é", "!", ""]


def test_half_a_character_is_replaced_only_when_it_cannot_be_completed() -> None:
    tokenizer = TOKENIZERS[0]
    first, second, _ = tokenizer.encode("日")
    assert streamed(tokenizer, [first, second]) == ["", "", "\ufffd"]
    (exclamation,) = tokenizer.encode("!")
    assert streamed(tokenizer, [first, exclamation]) == ["", "\ufffd!", ""]


def test_the_first_space_goes_unless_the_text_goes_on() -> None:
    tokenizer = TOKENIZERS[1]
    ids = [1, *tokenizer.encode("  a", add_special=False)]
    assert "".join(streamed(tokenizer, ids)) == "  a"
    assert "".join(streamed(tokenizer, ids, continuing=True)) == "   a"
    assert "".join(streamed(TOKENIZERS[2], ids, continuing=True)) == "   a"


def test_a_lone_space_is_dropped_only_once() -> None:
    tokenizer = TOKENIZERS[1]
    space = tokenizer.id_of("▁")
    assert space is not None
    assert streamed(tokenizer, [space, space, space]) == ["", " ", " ", ""]


def test_control_tokens_show_nothing_and_user_defined_ones_do() -> None:
    tokenizer = TOKENIZERS[0]
    assert streamed(tokenizer, tokenizer.encode("<|im_end|>[é]")) == ["", "[é]", ""]
    shown = tokenizer.decode(tokenizer.encode("<|im_end|>[é]"), skip_special=False)
    assert shown == "<|im_end|>[é]"
