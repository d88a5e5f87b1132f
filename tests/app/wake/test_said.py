"""A conversation's text and ids as bytes, and which one begins most as another text."""

import json
from dataclasses import replace
from typing import Any

import pytest

from app.wake.said import dump, load, shared
from models.text.tokenized_text import TokenizedText
from models.text.tokenizer import Tokenizer
from tests.models.text.vocabularies import byte_level

TOKENIZER = Tokenizer.from_metadata(byte_level(("b a", "Ġ ba", "c e")))
SAID = TokenizedText.of(TOKENIZER, "ba ce é").spoken(" ba", [32, 98, 97]).then(" ce \ud800")


def test_a_text_keeps_its_ids() -> None:
    for held in (0, 3, len(SAID.ids) - 1, len(SAID.ids)):
        ids = SAID.ids[:held]
        found = load(dump(SAID, ids), ids, TOKENIZER)
        assert found is not None
        assert (found.text, found.ids, found.cuts) == (SAID.text, SAID.ids, SAID.cuts)


def test_a_text_of_other_ids_is_not_kept() -> None:
    assert dump(None, [1, 2]) == b""
    assert dump(SAID, [*SAID.ids[:3], 5]) == b""
    assert dump(SAID, [*SAID.ids, 5]) == b""
    assert load(b"", [1], TOKENIZER) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"cuts": []},
        {"cuts": [[1, 0]]},
        {"cuts": [[0, 0], [9, 4], [7, 5]]},
        {"cuts": [[0, 0], [7, 99]]},
        {"cuts": [[0, 0], [99, 5]]},
        {"cuts": [[0, 0, 0]]},
        {"cuts": 7},
        {"after": [-1]},
        {"after": [TOKENIZER.vocab_size]},
        {"after": ["x"]},
        {"after": None},
    ],
    ids=str,
)
def test_what_is_made_up_is_none(changes: dict[str, Any]) -> None:
    fields = json.loads(dump(SAID, SAID.ids[:3])) | changes
    assert load(json.dumps(fields).encode(), SAID.ids[:3], TOKENIZER) is None
    assert load(b"[" * 100_000, [], TOKENIZER) is None


def test_shared_ids_are_those_up_to_the_last_cut_that_is_the_same() -> None:
    cuts = [(0, 0), (4, 2), (9, 6)]
    said = replace(SAID, text="abcd efgh ij", cuts=cuts)
    assert shared(said, "abcd efgh ijk") == 6
    assert shared(said, "abcd efgh") == 6
    assert shared(said, "abcd efg!") == 2
    assert shared(said, "abc") == 0
    assert shared(said, "") == 0
