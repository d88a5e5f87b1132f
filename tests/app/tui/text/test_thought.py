"""Thinking as lines: one that says what it took, and below it all of it where that is open."""

import pytest

from app.sessions.chat import ChatMessage, State, Thought
from app.tui.text.colours import Palette
from app.tui.text.entry import Entry
from app.tui.text.lines import LineMaker
from app.tui.text.roll import Roll
from app.tui.text.thought import META, ThoughtLines
from models.text.messages import Role


def maker(width: int = 40) -> LineMaker:
    return LineMaker(width, Palette())


def thought(text: str, tokens: int = 312, seconds: float = 7.3) -> Thought:
    return Thought(text=text, tokens=tokens, seconds=seconds)


def texts(lines: ThoughtLines, given: Thought, *, is_open: bool) -> list[str]:
    return [line.text.rstrip() for line in lines.lines(given, is_open=is_open)]


def test_folded_it_is_one_line() -> None:
    lines = ThoughtLines(maker())
    assert texts(lines, thought("Hm.\nSo."), is_open=False) == ["▸ thinking 312 tok, 7 s"]
    (head,) = lines.lines(thought("Hm."), is_open=False)
    assert all(segment.style and META in segment.style.meta for segment in head)
    # The same object again, so that it need not be drawn anew.
    assert lines.lines(thought("Hm. So"), is_open=False)[0] is head


@pytest.mark.parametrize("width", [9, 17, 40])
def test_open_it_grows_as_if_it_were_made_at_once(width: int) -> None:
    said = "One, two and \x1b[2Jthree.\n\nThen a long line of many words, and more.\nEnd"
    grown = ThoughtLines(maker(width))
    for size in range(1, len(said) + 1):
        shown = texts(grown, thought(said[:size]), is_open=True)
        once = texts(ThoughtLines(maker(width)), thought(said[:size]), is_open=True)
        assert shown == once
    body = [line for line in shown if line.startswith("│")]
    words = " ".join(line.removeprefix("│").strip() for line in body).split()
    assert "".join(words) == "".join(said.replace("\x1b", "␛").split())
    assert max(map(len, body)) <= width


def test_an_entry_has_it_above_its_answer() -> None:
    wide = maker()
    message = ChatMessage(role=Role.ASSISTANT, text="", state=State.STREAMING)
    entry = Entry(message)
    message.thought = thought("Hm", 2, 0.4)
    assert entry.sync(wide)
    assert [line.text for line in entry.lines] == ["▸ thinking 2 tok, 0 s", ""]
    message.text, message.state = "Paris.", State.COMPLETE
    assert entry.sync(wide)
    assert [line.text for line in entry.lines] == ["▸ thinking 2 tok, 0 s", "", "Paris.", ""]
    assert entry.body == 3
    assert not entry.sync(wide)
    entry.toggle_thought()
    assert entry.sync(wide)
    assert [line.text for line in entry.lines][:2] == ["▾ thinking 2 tok, 0 s", "│ Hm"]


def test_a_roll_opens_one_and_those_after_it_move() -> None:
    wide, roll = maker(), Roll()
    answers = [
        ChatMessage(role=Role.ASSISTANT, text="Paris.", thought=thought("Hm.\nSo."))
        for _ in range(2)
    ]
    roll.show([*answers, ChatMessage(role=Role.USER, text="And?")], wide)
    roll.freshen(wide, 0, 9.0)
    assert roll.last_thought() == 1
    top, height = roll.span(1)[0], roll.height
    assert roll.toggle_thought(wide, 0) == 0
    assert (roll.span(1)[0], roll.height) == (top + 2, height + 2)
    roll.toggle_thought(wide, 0)
    assert (roll.span(1)[0], roll.height) == (top, height)
    assert Roll().last_thought() is None


def test_thinking_may_be_open_from_the_start() -> None:
    roll = Roll(lambda: True)
    message = ChatMessage(role=Role.ASSISTANT, text="Paris.", thought=thought("Hm."))
    roll.show([message], maker())
    assert "│ Hm." in roll.text_lines()
