import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.inert import inert, inert_json, inert_line


@given(st.text(st.characters(exclude_categories=()), max_size=200))
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    shown = inert(text)
    shown.encode("utf-8")
    assert all(each in "\n\t" or unicodedata.category(each) != "Cc" for each in shown)
    assert not any("\u202a" <= each <= "\u202e" or "\u2066" <= each <= "\u2069" for each in shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "␛[31mred␛[0m"),
        ("a\tb\r\nc", "a\tb\nc"),
        ("gone\rback", "gone␍back"),
        ("\x9b2J", "\ufffd2J"),
        ("user\u202etxt.exe", "user\ufffdtxt.exe"),
        ("grün 🙂 [bold]x[/]", "grün 🙂 [bold]x[/]"),
    ],
)
def test_examples(text: str, shown: str) -> None:
    assert inert(text) == shown


@given(st.text(st.characters(exclude_categories=()), max_size=200))
def test_one_line_is_one_line_for_whoever_splits_it(text: str) -> None:
    shown = inert_line(text)
    shown.encode("utf-8")
    assert len(shown) == len(text)
    assert len(shown.splitlines()) <= 1
    assert all(unicodedata.category(each) not in ("Cc", "Zl", "Zp") for each in shown)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\nlines\tand more", "two␊lines␉and more"),
        ("same\u200bname\ufeff\xad", "same\ufffdname\ufffd\ufffd"),
        ("tagged\U000e0041", "tagged\ufffd"),
        ("👩\u200d💻 می\u200cخواهم", "👩\u200d💻 می\u200cخواهم"),
        (Path("a\x1b/b"), "a␛/b"),
        (None, "None"),
    ],
)
def test_examples_of_one_line(text: object, shown: str) -> None:
    assert inert_line(text) == shown


@given(st.text(st.characters(exclude_categories=()), max_size=200))
def test_json_says_the_same(text: str) -> None:
    written = inert_json(json.dumps({text: [text]}, ensure_ascii=False))
    written.encode("utf-8")
    assert json.loads(written) == {text: [text]}
    assert inert(written) == written
