import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.inert import inert


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
