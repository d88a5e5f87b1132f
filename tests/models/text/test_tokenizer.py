"""Tokenizer: llama.cpp's ids on SmolLM2, special tokens, and damaged files."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from models.errors import GGUFError
from models.gguf.metadata import MetadataValue
from models.text.bpe import BYTE_ALPHABET
from models.text.tokenizer import Tokenizer
from models.text.vocabulary import PREFIX, TokenType
from tests.models.text.real_vocabularies import tekken
from tests.models.text.vocabularies import Keys, byte_level, metadata_of, truth, with_scores
from tests.patience import within

MERGES = ("h e", "l l", "he ll", "hell o", "Ġ w", "o r")
SPECIAL = {
    "<|im_end|>": TokenType.CONTROL,
    "<|im_end|>x": TokenType.CONTROL,
    "[TAG]": TokenType.USER_DEFINED,
}


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Tokenizer:
    return Tokenizer.from_metadata(metadata_of(smollm2_path))


@pytest.mark.network
class TestSmolLM2:
    @pytest.mark.parametrize("entry", truth()["tokenize"], ids=lambda entry: entry["text"][:16])
    def test_same_ids_as_llama_cpp(self, smollm2: Tokenizer, entry: dict[str, Any]) -> None:
        text = entry["text"]
        assert smollm2.encode(text) == entry["ids_add_special"]
        assert smollm2.encode(text, add_special=False) == entry["ids_parse_special"]
        plain = smollm2.encode(text, add_special=False, parse_special=False)
        assert plain == entry["ids_plain"]
        assert entry["roundtrip_ok"]
        assert smollm2.decode(plain) == text
        assert smollm2.decode(entry["ids_parse_special"], skip_special=False) == text

    def test_special_ids(self, smollm2: Tokenizer) -> None:
        assert (smollm2.bos_id, smollm2.eos_id) == (1, 2)
        # <reponame> is among them, as in llama.cpp.
        assert smollm2.eog_ids == {0, 2, 4}
        assert smollm2.special_ids == set(range(17))
        assert not smollm2.adds_bos
        assert smollm2.vocab_size == 49152

    @given(text=st.text())
    def test_plain_text_never_becomes_a_control_token(self, smollm2: Tokenizer, text: str) -> None:
        ids = smollm2.encode(text + "<|im_end|>" + text, parse_special=False)
        assert smollm2.special_ids.isdisjoint(ids)

    def test_builds_and_encodes_fast(self, smollm2_path: Path) -> None:
        keys = metadata_of(smollm2_path)
        with within(2):
            tokenizer = Tokenizer.from_metadata(keys)
        for text in ("ab " * 33_333, "ab" * 50_000, "\u0416" * 50_000, " " * 100_000):
            with within(2):
                assert tokenizer.decode(tokenizer.encode(text)) == text


def pieces(tokenizer: Tokenizer, text: str, **flags: bool) -> list[str]:
    return [tokenizer.piece(id_) for id_ in tokenizer.encode(text, **flags)]


def test_merges_by_rank_within_words() -> None:
    tokenizer = Tokenizer.from_metadata(byte_level(MERGES))
    assert pieces(tokenizer, "hello world") == ["hello", " w", "or", "l", "d"]


def test_ignore_merges_takes_a_whole_word_without_a_merge() -> None:
    special = {"dog": TokenType.NORMAL}
    for pre, expected in (("llama-bpe", ["dog"]), ("dbrx", ["d", "o", "g"])):
        keys = byte_level(special=special, changes={"pre": pre, "add_bos_token": False})
        assert pieces(Tokenizer.from_metadata(keys), "dog") == expected


@given(text=st.text() | st.text("aZ \n'’日я١!/Жǅ\u0301"))
def test_tekken_ids_are_tiktokens(text: str) -> None:
    made = tekken(4999)
    assert made.tokenizer.encode(text) == made.oracle.encode(text)


def test_a_byte_without_a_token_is_dropped_before_its_neighbours_merge() -> None:
    tokenizer = Tokenizer.from_metadata(byte_level(["a b"], without="#Ã©"))
    assert pieces(tokenizer, "ab#a#b") == ["ab", "a", "b"]
    assert pieces(tokenizer, "aéb aé") == ["ab", " ", "a"]


def test_special_tokens_longest_first_and_user_defined_always() -> None:
    tokenizer = Tokenizer.from_metadata(byte_level(special=SPECIAL))
    text = "a<|im_end|>xb[TAG]<|im_end|>"
    assert pieces(tokenizer, text) == ["a", "<|im_end|>x", "b", "[TAG]", "<|im_end|>"]
    plain = pieces(tokenizer, text, parse_special=False)
    assert plain == [*"a<|im_end|>xb", "[TAG]", *"<|im_end|>"]


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ("<|placeholder1|>", "<|end|> | x \n | <|end|> | y | [TAG] | z | <|end|> | <s> |  w"),
        (
            "<|user|> <|endofprompt|>",
            "<|end|> | x \n | <|end|> | y | [TAG] | z | <|end|> | <s> | w",
        ),
        ("<|im_sep|> <|dummy_87|>", "<|end|> | x | <|end|> | y | [TAG] | z | <|end|> | <s> | w"),
        ("<|user|>", "<|end|> | \n x \n | <|end|> |  y | [TAG] |  z | <|end|> | \t | <s> |  w"),
    ],
    ids=["phi 3", "phi 4 mini", "phi 4", "others"],
)
def test_special_tokens_of_phi_take_the_spaces_by_them(marks: str, expected: str) -> None:
    special = dict.fromkeys(("<|end|>", "<s>", *marks.split()), TokenType.CONTROL)
    special["[TAG]"] = TokenType.USER_DEFINED
    tokenizer = Tokenizer.from_metadata(byte_level(special=special))
    text = "<|end|>\n x \n<|end|> y[TAG] z<|end|>\t<s> w"
    parts = list(tokenizer.parts(text))
    assert (
        " | ".join("".join(map(tokenizer.piece, part.ids)) for part in parts if part.ids)
        == expected
    )
    assert sum(part.length for part in parts) == len(text)
    assert tokenizer.encode(text) == [id_ for part in parts for id_ in part.ids]


PHIS = {
    "phi 3": (("<|end|>", "<|placeholder1|>", "<|endoftext|>"), False),
    "phi 4 mini": (("<|end|>", "<|user|>", "<|endofprompt|>", "<|endoftext|>"), False),
    "phi 4": (("<|im_sep|>", "<|dummy_87|>", "<|endoftext|>"), True),
}


@pytest.mark.parametrize("name", PHIS)
def test_spaces_are_taken_as_the_library_takes_them(name: str) -> None:
    marks, everywhere = PHIS[name]
    library = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={each: at for at, each in enumerate(BYTE_ALPHABET)}, merges=[])
    )
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    none = set() if everywhere else {"<|endoftext|>", "<|endofprompt|>"}
    library.add_special_tokens(
        [tokenizers.AddedToken(mark, lstrip=everywhere, rstrip=mark not in none) for mark in marks]
    )
    tokenizer = Tokenizer.from_metadata(byte_level(special=dict.fromkeys(marks, TokenType.CONTROL)))

    @given(st.lists(st.sampled_from((*marks, "\n", " ", "\t", "\u3000", "\x1c", "a"))).map("".join))
    def are_alike(text: str) -> None:
        assert tokenizer.encode(text) == library.encode(text).ids

    are_alike()


def test_gemma_4_is_cut_as_gemma_4_whatever_the_file_says() -> None:
    pieces = {"\u2581": 0.0, "a": 0.0, "\u2581a": 0.0}
    keys: Keys = {"model": "gemma4", "pre": "gpt-2", "merges": ["\u2581 a"], "bos_token_id": 1}
    tokenizer = Tokenizer.from_metadata(with_scores(pieces, changes=keys))
    ids = tokenizer.encode("a a")
    assert [tokenizer.text(id_) for id_ in ids] == ["<s>", "a", "\u2581a"]
    assert tokenizer.decode(ids) == "a a"
    assert not tokenizer.notes


def test_gemma_4_gets_the_bos_that_its_file_forbids() -> None:
    keys: Keys = {"merges": ["\u2581 a"], "bos_token_id": 1, "add_bos_token": False}
    models: list[Keys] = [{"model": "gemma4"}, {"model": "gpt2", "pre": "gemma4"}]
    for model in models:
        tokenizer = Tokenizer.from_metadata(with_scores({"a": 0.0}, changes=keys | model))
        assert [tokenizer.text(id_) for id_ in tokenizer.encode("a")] == ["<s>", "a"]
        (told,) = [note for note in tokenizer.notes if "bos" in note]
        assert "add_bos_token is false" in told
    other = Tokenizer.from_metadata(
        with_scores({"a": 0.0}, changes=keys | {"model": "gpt2", "pre": "sarvam-moe"})
    )
    assert not other.adds_bos


def test_bos_and_eos_around_a_text() -> None:
    special = {"<s>": TokenType.CONTROL, "</s>": TokenType.CONTROL}
    ids: Keys = {"bos_token_id": 256, "eos_token_id": 257}
    both = Tokenizer.from_metadata(
        byte_level(special=special, changes=ids | {"add_bos_token": True, "add_eos_token": True})
    )
    assert pieces(both, "a") == ["<s>", "a", "</s>"]
    assert pieces(both, "") == ["<s>", "</s>"]
    assert pieces(both, "a", add_special=False) == ["a"]
    assert pieces(Tokenizer.from_metadata(byte_level(special=special, changes=ids)), "a") == ["a"]
    by_name = byte_level(special=special, changes=ids | {"pre": "llama-bpe"})
    assert Tokenizer.from_metadata(by_name).adds_bos


NO_ENDS = ("<|im_start|>", "[INST]", "<|channel|>")
ENDS = (
    *("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>"),
    *("<end_of_turn>", "<end_of_utterance>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<eos>", "</s>"),
    *("<｜end▁of▁sentence｜>", "<|return|>", "<|calls|>", "<turn|>", "[e~[", "<|repo_name|>"),
    *("[PAD]", "<PAD>", "<|fim_pad|>", "<fim_pad>", "<|file_sep|>", "<reponame>"),
)


@pytest.mark.parametrize("text", ENDS)
@pytest.mark.parametrize(
    "kind", [TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.CONTROL, TokenType.UNUSED]
)
def test_an_end_text_ends_and_is_one_token_whatever_its_type(text: str, kind: TokenType) -> None:
    tokenizer = Tokenizer.from_metadata(byte_level(special={text: kind}))
    assert tokenizer.eog_ids == tokenizer.special_ids == {256}
    assert pieces(tokenizer, f"a{text}b") == ["a", text, "b"]
    assert 256 not in tokenizer.encode(f"a{text}b", parse_special=False)
    assert tokenizer.decode([256]) == ""


@pytest.mark.parametrize("text", ["<|im_end|>", "<|eot_id|>"])
def test_an_end_text_ends_in_the_sentencepiece_family(text: str) -> None:
    tokenizer = Tokenizer.from_metadata(with_scores({text: -1000.0, "▁a": -1.0, "▁": -2.0}))
    id_ = tokenizer.id_of(text)
    assert tokenizer.eog_ids == {2, id_}
    assert tokenizer.encode(f"a{text}")[-1] == id_


@pytest.mark.parametrize("text", NO_ENDS)
def test_other_special_texts_are_no_ends(text: str) -> None:
    tokenizer = Tokenizer.from_metadata(byte_level(special={text: TokenType.CONTROL}))
    assert tokenizer.eog_ids == frozenset()


@pytest.mark.parametrize("text", ["<fim_prefix>", "<|fim_middle|>", "<｜fim▁hole｜>", "▁<SUF>"])
def test_fill_in_texts_are_control_tokens_but_no_ends(text: str) -> None:
    tokenizer = Tokenizer.from_metadata(byte_level(special={text: TokenType.NORMAL}))
    assert not tokenizer.eog_ids
    assert tokenizer.special_ids == {256}


def test_a_piece_that_merges_make_is_ordinary() -> None:
    """Qwen's `</s>`: HTML must not end an answer."""
    tokenizer = Tokenizer.from_metadata(byte_level(["< /", "s >", "</ s>"]))
    assert tokenizer.eog_ids == tokenizer.special_ids == frozenset()
    id_ = tokenizer.id_of("</s>")
    assert id_ is not None
    assert tokenizer.decode([id_]) == "</s>"
    scored = Tokenizer.from_metadata(with_scores({"<EOT>": -1.0, "<EOT": -2.0, ">": -3.0}))
    assert scored.eog_ids == {2}


@pytest.mark.parametrize(
    ("text", "sign", "ends"),
    [
        ("<|end|>", ("<|return|>", "<|call|>"), False),
        ("<|end|>", ("<|flush|>", "<|calls|>"), False),
        ("<|end|>", ("<|flush|>", "<|call|>"), False),
        ("<|end|>", ("<|return|>",), True),
        ("</s>", ("<|tool_response>",), False),
        ("</s>", ("<|plamo:eos|>",), False),
        ("</s>", ("<turn|>",), True),
        ("</s>", ("</em>", "</strong>"), False),
        ("</s>", ("</em>",), True),
    ],
)
def test_families_in_which_a_text_is_no_end(text: str, sign: tuple[str, ...], ends: bool) -> None:
    special = dict.fromkeys((text, *sign), TokenType.CONTROL)
    assert (256 in Tokenizer.from_metadata(byte_level(special=special)).eog_ids) is ends


@pytest.mark.parametrize("name", ["eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"])
def test_ends_by_key(name: str) -> None:
    special = {"[STOP]": TokenType.NORMAL, "<|im_end|>": TokenType.CONTROL}
    keys = byte_level(special=special, changes={f"{name}_token_id": 256})
    tokenizer = Tokenizer.from_metadata(keys)
    assert tokenizer.eog_ids == tokenizer.special_ids == {256, 257}
    assert pieces(tokenizer, "a[STOP]") == ["a", "[STOP]"]
    assert (tokenizer.eos_id == 256) is (name == "eos")


def test_an_end_by_key_that_is_ordinary_text_stays_so() -> None:
    """Some models end at a newline."""
    newline = byte_level(changes={"eos_token_id": 10})
    tokenizer = Tokenizer.from_metadata(newline)
    (id_,) = tokenizer.eog_ids
    assert id_ not in tokenizer.special_ids
    assert tokenizer.decode(tokenizer.encode("a\nb")) == "a\nb"


def test_several_ends_at_once() -> None:
    special = {
        "<|eot_id|>": TokenType.CONTROL,
        "<|im_end|>": TokenType.USER_DEFINED,
        "</s>": TokenType.NORMAL,
        "[STOP]": TokenType.CONTROL,
        "[MORE]": TokenType.CONTROL,
    }
    keys = byte_level(special=special, changes={"eom_token_id": 259, "eos_token_id": 260})
    tokenizer = Tokenizer.from_metadata(keys)
    assert tokenizer.eog_ids == tokenizer.special_ids == {256, 257, 258, 259, 260}


def test_pieces_and_bytes() -> None:
    tokenizer = Tokenizer.from_metadata(byte_level(["Ġ w"], special=SPECIAL))
    by_name = {name: tokenizer.id_of(name) for name in ("Ġw", "Ã", "<|im_end|>", "[TAG]")}
    shown = [tokenizer.piece(id_) for id_ in by_name.values() if id_ is not None]
    added = [tokenizer.token_bytes(id_) for id_ in by_name.values() if id_ is not None]
    assert shown == [" w", r"\xc3", "<|im_end|>", "[TAG]"]
    assert added == [b" w", b"\xc3", b"", b"[TAG]"]
    for outside in (-1, tokenizer.vocab_size):
        with pytest.raises(IndexError, match=f"token id {outside} "):
            tokenizer.token_bytes(outside)


@given(text=st.text(st.characters()))
def test_any_text_survives_bar_lone_surrogates(text: str) -> None:
    tokenizer = Tokenizer.from_metadata(byte_level(MERGES))
    expected = re.sub("[\ud800-\udfff]", "\ufffd", text)
    assert tokenizer.decode(tokenizer.encode(text)) == expected


OPTIONAL = (
    "pre",
    "bos_token_id",
    "unknown_token_id",
    "eot_token_id",
    "add_bos_token",
    "add_eos_token",
    "add_space_prefix",
)
DAMAGE: list[tuple[Keys, str]] = [
    ({"model": "bert"}, "model is 'bert', supported are: llama, gpt2, gemma4"),
    ({"model": None}, "model is missing; convert the model again"),
    ({"model": 3}, "model is 3, expected a string"),
    ({"pre": 3}, "pre is 3, expected a string"),
    ({"tokens": None}, "tokens is missing"),
    ({"tokens": []}, "tokens is empty"),
    ({"tokens": np.ones(3)}, "tokens is an array of float64, expected an array of strings"),
    ({"tokens": ["\ud800"]}, "tokens holds what is not UTF-8 text"),
    ({"token_type": np.ones(256, np.float32)}, "token_type is an array of float32, expected"),
    ({"token_type": ["1"]}, "token_type is an array of strings, expected an array of integers"),
    ({"token_type": np.ones((256, 2), np.int32)}, "token_type is an array of int32, expected"),
    ({"merges": None}, "merges is missing"),
    ({"eot_token_id": "2"}, "eot_token_id is '2', expected an integer"),
    ({"eom_token_id": True}, "eom_token_id is True, expected an integer"),
    ({"add_bos_token": 1}, "add_bos_token is 1, expected a boolean"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGE, ids=lambda value: str(value)[:30])
def test_damaged_keys_are_named(change: Keys, message: str) -> None:
    with pytest.raises(GGUFError, match=r"tokenizer\.ggml\." + message):
        Tokenizer.from_metadata(byte_level(changes=change))


VALUES: list[MetadataValue] = [
    0,
    -1,
    2**63,
    math.nan,
    True,
    "",
    "llama",
    "tekken",
    "\ud800",
    [],
    ["", ""],
    ["a b", " ", "\ud800"],
    np.zeros(0, np.float32),
    np.full(320, 2**64 - 1, np.uint64),
    np.full(320, 2, np.int8),
    np.full(320, -np.inf),
    np.zeros((320, 2), np.int32),
    np.array([True]),
]


@given(data=st.data())
def test_hostile_metadata_raises_nothing_but_gguf_error(data: st.DataObject) -> None:
    special = {f"[{number}]": TokenType.USER_DEFINED for number in range(320 - 256)}
    letters = dict.fromkeys("abcdefgh", -1.0)
    control = {f"<{number}>": TokenType.CONTROL for number in range(320 - 259 - len(letters))}
    metadata = data.draw(
        st.sampled_from([byte_level(special=special), with_scores(letters, special=control)])
    )
    keys = st.sampled_from([*metadata, *(PREFIX + name for name in OPTIONAL)])
    for key in data.draw(st.sets(keys, min_size=1, max_size=3)):
        metadata[key] = data.draw(st.sampled_from(VALUES))
    try:
        tokenizer = Tokenizer.from_metadata(metadata)
    except GGUFError as error:
        assert str(error).startswith(PREFIX)  # noqa: PT017 -- either outcome is right
    else:
        assert max(tokenizer.encode("abc é <1>[1]"), default=0) < tokenizer.vocab_size
        assert all(note.isprintable() for note in tokenizer.notes)


def test_a_merge_may_not_make_a_control_token() -> None:
    keys = byte_level(special={"ab": TokenType.CONTROL}, changes={"merges": ["a b"]})
    tokenizer = Tokenizer.from_metadata(keys)
    assert pieces(tokenizer, "ab", parse_special=False) == ["a", "b"]


def test_empty_tokens_are_numbered() -> None:
    keys = byte_level(special={"": TokenType.NORMAL})
    assert Tokenizer.from_metadata(keys).id_of("[EMPTY_256]") == 256


def test_defaults_of_the_sentencepiece_family() -> None:
    tokenizer = Tokenizer.from_metadata(with_scores({"▁a": -1.0, "▁": -2.0, "a": -3.0}))
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert tokenizer.eog_ids == {2}
    assert tokenizer.adds_bos
    assert pieces(tokenizer, "a") == ["<s>", " a"]


def test_a_bos_or_eos_that_the_text_brings_is_not_doubled() -> None:
    special = {"<s>": TokenType.CONTROL, "</s>": TokenType.CONTROL}
    both: Keys = {"bos_token_id": 256, "eos_token_id": 257}
    both |= {"add_bos_token": True, "add_eos_token": True}
    tokenizer = Tokenizer.from_metadata(byte_level(special=special, changes=both))
    assert pieces(tokenizer, "<s>a</s>") == ["<s>", "a", "</s>"]
    assert pieces(tokenizer, "<s>") == ["<s>", "</s>"]
    assert pieces(tokenizer, "<s><s>") == ["<s>", "<s>", "</s>"]
    assert pieces(tokenizer, "a<s>") == ["<s>", "a", "<s>", "</s>"]
    plain = pieces(tokenizer, "<s>a", parse_special=False)
    assert plain == ["<s>", "<", "s", ">", "a", "</s>"]
