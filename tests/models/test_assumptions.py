"""Files that say too little or what cannot be: they load as in llama.cpp, and it is said.

Ids are llama.cpp's on the same vocabularies, by llama-cpp-python 0.3.36, where it loads
them: it refuses arrays that are too short, and ends the process at two equal tokens.
"""

import numpy as np
import pytest

from models.assumptions import Assumptions
from models.text.tokenizer import Tokenizer
from models.text.vocabulary import TokenType
from tests.models.text.vocabularies import Keys, byte_level, with_scores

PIECES = {"▁": -90.0, "a": -91.0, "b": -92.0, "ab": -1.0, "ba": -2.0, "aba": -3.0, "▁a": -4.0}
SIZE = 3 + 256 + len(PIECES)
TYPES = np.array([2, 3, 3, *[6] * 256, *[1] * len(PIECES)], np.int32)
SCORES = np.array([0.0] * 259 + list(PIECES.values()), np.float32)
NAN = np.where(np.arange(SIZE) == 262, np.nan, SCORES)
MERGES = ["h e", "l l", "he ll", "hell o"]


def test_a_note_names_the_first_subject_and_counts_the_rest() -> None:
    assumed = Assumptions()
    for subject, decision in (("one", "left out"), ("two", "taken"), ("three", "left out")):
        assumed.add(subject, decision)
    assert assumed.notes() == ("one and 1 more: left out", "two: taken")


def test_a_sound_file_needs_no_assumption() -> None:
    assert Tokenizer.from_metadata(with_scores(PIECES)).notes == ()
    assert Tokenizer.from_metadata(byte_level(MERGES)).notes == ()


RIGHT = [259, 262, 262, 259, 264]  # " ", "ab", "ab", " ", "aba"


@pytest.mark.parametrize(
    ("changes", "ids", "note"),
    [
        ({"scores": None}, [265, 263, 261, 265, 263], "scores is missing: all pieces count alike"),
        ({"scores": SCORES[:-1]}, RIGHT, "scores has 265 entries for 266 tokens"),
        ({"scores": np.append(SCORES, 5)}, RIGHT, "scores has 267 entries for 266 tokens"),
        ({"scores": NAN}, [259, 264, 261, 259, 264], "scores[262] is NaN: not a number, this"),
        ({"token_type": None}, RIGHT, "token_type is missing: no token is special"),
        ({"token_type": TYPES[:261]}, RIGHT, "token_type has 261 entries for 266 tokens"),
        ({"token_type": np.append(TYPES, 3)}, RIGHT, "token_type has 267 entries for 266"),
        ({"bos_token_id": 4294967295}, RIGHT, "bos_token_id is 4294967295: outside the"),
        ({"eos_token_id": SIZE}, RIGHT, "eos_token_id is 266: outside the vocabulary, 2 is"),
        ({"unknown_token_id": -1}, RIGHT, "unknown_token_id is -1: outside the vocabulary, 0 is"),
        ({"eot_token_id": 999}, RIGHT, "eot_token_id is 999: outside the vocabulary, it is left"),
    ],
)
def test_sentencepiece(changes: Keys, ids: list[int], note: str) -> None:
    tokenizer = Tokenizer.from_metadata(with_scores(PIECES, changes=changes))
    (said,) = tokenizer.notes
    assert said.startswith("tokenizer.ggml." + note)
    assert tokenizer.encode("abab aba", add_special=False) == ids
    assert tokenizer.encode("é") == [1, 259, 198, 172]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"merges": [*MERGES, "x y", "ab", "l "]}, r"merges[4] ('x y') and 2 more: not two pieces"),
        ({"token_type": None}, "token_type is missing: no token is special"),
        ({"token_type": np.ones(5, np.int32)}, "token_type has 5 entries for 260 tokens"),
        ({"bos_token_id": 4294967295, "eos_token_id": 260, "eom_token_id": -7}, "bos_token_id is"),
        ({"add_bos_token": True}, "bos_token_id is not there: no such token is put around"),
        ({"add_eos_token": True}, "eos_token_id is not there: no such token is put around"),
    ],
)
def test_byte_level(changes: Keys, note: str) -> None:
    tokenizer = Tokenizer.from_metadata(byte_level(MERGES, changes=changes))
    (said,) = tokenizer.notes
    assert said.startswith("tokenizer.ggml." + note)
    assert tokenizer.encode("hello llé") == [259, 32, 257, 195, 169]
    assert tokenizer.decode([259, 32, 257, 195, 169]) == "hello llé"
    assert not tokenizer.adds_bos
    assert not tokenizer.adds_eos


def test_types_that_nobody_knows_are_undefined() -> None:
    types = np.where(np.arange(SIZE) == 262, 77, TYPES)
    tokenizer = Tokenizer.from_metadata(with_scores(PIECES, changes={"token_type": types}))
    assert tokenizer.notes == (
        "token 262 has the type 77: unknown, it is undefined and adds no text",
    )
    assert tokenizer.encode("abab aba", add_special=False) == RIGHT
    assert tokenizer.decode(RIGHT) == " aba"


def test_a_byte_token_that_spells_no_byte_is_normal() -> None:
    special = {"0A": TokenType.BYTE, "<0x0a>": TokenType.BYTE}
    tokenizer = Tokenizer.from_metadata(with_scores(PIECES, special=special))
    assert tokenizer.notes == (
        "token 266 ('0A') is of type BYTE: not <0xXX>, it is a normal token",
    )
    assert (tokenizer.token_bytes(266), tokenizer.token_bytes(267)) == (b"0A", b"\n")


def test_of_two_tokens_with_one_text_the_first_is_used_and_both_are_decoded() -> None:
    special = {"ab": TokenType.NORMAL, "[X]": TokenType.CONTROL, "</s>": TokenType.CONTROL}
    tokenizer = Tokenizer.from_metadata(with_scores(PIECES, special=special))
    assert tokenizer.notes == (
        "token 266 ('ab') and 1 more: another token has this text, "
        "of two that do the first is used",
    )
    assert tokenizer.encode("abab aba</s>[X]", add_special=False) == [*RIGHT, 2, 267]
    assert tokenizer.decode([266, 262, 268]) == "abab"
    assert 268 in tokenizer.special_ids


def test_tokens_that_are_not_utf8_keep_their_bytes_and_stay_apart() -> None:
    rows = [
        (b"\xc3", TokenType.NORMAL),
        (b"\xc4", TokenType.NORMAL),
        (b"a\xff", TokenType.USER_DEFINED),
        (b"[\x9b]", TokenType.CONTROL),
    ]
    special = {data.decode(errors="surrogateescape"): kind for data, kind in rows}
    tokenizer = Tokenizer.from_metadata(with_scores(PIECES, special=special))
    assert tokenizer.notes == (
        r"token 266 (b'\xc3') and 3 more: not UTF-8, no text becomes this token",
    )
    assert [tokenizer.token_bytes(id_) for id_ in (266, 267, 268)] == [b"\xc3", b"\xc4", b"a\xff"]
    assert [tokenizer.piece(id_) for id_ in (266, 268, 269)] == [r"\xc3", r"a\xff", r"[\x9b]"]
    assert tokenizer.decode([266, 198, 172, 269], skip_special=False) == "\ufffdé[\ufffd]"
    assert tokenizer.encode("abab aba", add_special=False) == RIGHT
    byte_tokens = Tokenizer.from_metadata(byte_level(MERGES, special=special))
    assert byte_tokens.token_bytes(260) == b"\xc3"
    assert byte_tokens.encode("hello llé") == [259, 32, 257, 195, 169]


def test_notes_hold_nothing_that_a_terminal_obeys() -> None:
    texts = {"\x1b[2J" + "x" * 999: TokenType.BYTE, "\x9b\u202e": TokenType.BYTE}
    keys = byte_level(special=texts, changes={"merges": ["\x1b]0;t\x07 \n"]})
    notes = Tokenizer.from_metadata(keys).notes
    assert len(notes) == 2
    assert all(note.isprintable() and len(note) < 200 for note in notes)
