"""What is copied of lines of which a part is selected."""

import pytest
from textual.geometry import Offset
from textual.selection import SELECT_ALL, Selection

from app.tui.text.selected import selected_text, word_at

LINES = ["one two", "\u4e2d\u6587\u5b57 three", "", "four"]
MARGIN = 3


def between(start: tuple[int, int], end: tuple[int, int]) -> Selection:
    """Places as they are drawn: columns of the terminal, the margin's too, and lines."""
    return Selection(Offset(*start), Offset(*end))


@pytest.mark.parametrize(
    ("selection", "text"),
    [
        (SELECT_ALL, "\n".join(LINES)),
        (between((0, 0), (6, 0)), "one"),
        (between((7, 0), (7, 1)), "two\n\u4e2d\u6587"),
        (between((5, 1), (15, 1)), "\u6587\u5b57 three"),
        (between((1, 1), (5, 3)), "\u4e2d\u6587\u5b57 three\n\nfo"),
        (Selection(Offset(5, 3), None), "ur"),
        (Selection(None, Offset(4, 0)), "o"),
    ],
)
def test_what_is_drawn_as_selected_is_copied(selection: Selection, text: str) -> None:
    assert selected_text(LINES, selection, MARGIN) == text


@pytest.mark.parametrize(
    ("line", "column", "word"),
    [
        (0, 3, "one"),
        (0, 5, "one"),
        (0, 6, ""),
        (0, 9, "two"),
        (0, 10, ""),
        (1, 8, LINES[1][:3]),
        (2, 3, ""),
    ],
)
def test_the_word_that_is_pointed_at(line: int, column: int, word: str) -> None:
    span = word_at(LINES[line], column, MARGIN)
    chosen = (
        ""
        if span is None
        else selected_text(LINES, between((span[0], line), (span[1], line)), MARGIN)
    )
    assert chosen == word


@pytest.mark.parametrize("end", [(9, 4), (2, 7), (5, 9)])
def test_lines_that_have_gone_since_are_none(end: tuple[int, int]) -> None:
    assert selected_text(LINES, between((1, end[1]), end), MARGIN) == ""
    assert selected_text(LINES, between((3, 3), end), MARGIN) == "four"
    assert selected_text([], between((0, 0), end), MARGIN) == ""
