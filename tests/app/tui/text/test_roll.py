from app.sessions.chat import ChatMessage, State
from app.tui.text.colours import Palette
from app.tui.text.lines import LineMaker
from app.tui.text.roll import Roll
from models.text.messages import Role


def said(*texts: str) -> list[ChatMessage]:
    roles = (Role.USER, Role.ASSISTANT)
    return [ChatMessage(role=roles[at % 2], text=text) for at, text in enumerate(texts)]


def maker(width: int) -> LineMaker:
    return LineMaker(width, Palette())


def test_only_the_last_messages_are_made_at_once() -> None:
    roll, wide = Roll(), maker(40)
    messages = said(*(f"number {at} " * 9 for at in range(50)))
    assert roll.show(messages, wide) == 0
    assert "number 49" in "\n".join(roll.text_lines())
    assert "number 7" not in "\n".join(roll.text_lines())
    while roll.freshen(wide, 0, 0.001) is not None:
        pass
    lines = roll.text_lines()
    assert all(f"number {at}" in "\n".join(lines) for at in range(50))
    assert roll.height == len(lines)


def test_what_is_near_comes_first() -> None:
    roll, wide = Roll(), maker(40)
    messages = said(*(f"number {at}" for at in range(50)))
    roll.show(messages, wide)
    middle = roll.span(20)[0]
    roll.freshen(wide, middle, 0)
    assert roll.text_lines()[roll.span(20)[0]] == "number 20"


def test_a_growing_message_changes_from_its_first_new_line_on() -> None:
    roll, wide = Roll(), maker(40)
    messages = said("why?", "one\n\ntwo\n")
    messages[1].state = State.STREAMING
    roll.show(messages, wide)
    assert roll.show(messages, wide) is None
    top = roll.span(1)[0]
    messages[1].text += "three\n\nfour"
    changed = roll.show(messages, wide)
    assert changed is not None
    assert changed > top
    assert "three" in roll.text_lines()[changed:]


def test_messages_that_go_take_their_lines_along() -> None:
    roll, wide = Roll(), maker(40)
    messages = said("one", "two", "three", "four")
    roll.show(messages, wide)
    roll.freshen(wide, 0, 1)
    assert roll.show(messages[:1], wide) == roll.height
    assert roll.text_lines() == ["one", ""]
    assert roll.show([], wide) == 0
    assert roll.height == 0
    assert roll.index_at(5) == 0


def test_tokens_before_a_message_are_those_of_the_last_that_knows() -> None:
    roll = Roll()
    messages = said("one", "two", "three")
    messages[0].end = 7
    roll.show(messages, maker(40))
    assert [roll.tokens_before(at) for at in range(3)] == [0, 7, 7]
