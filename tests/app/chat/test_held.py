"""What the cache holds of the chat that is shown."""

from app.chat.held import Held
from app.sessions.chat import Chat, ChatMessage
from models.text.messages import Role
from tests.app.service.scripted_service import layer_stats


def chat() -> Chat:
    """Two turns that end at 40, 80, 120 and 160 tokens."""
    roles = (Role.USER, Role.ASSISTANT) * 2
    messages = [
        ChatMessage(role=each, text="x", end=40 * (at + 1)) for at, each in enumerate(roles)
    ]
    return Chat(messages=messages)


def test_marks_follow_what_is_shown() -> None:
    (total,) = layer_stats(evicted=60, cold=60, hot=40, layers=1)
    shown, held = chat(), Held()
    held.begin(shown)
    assert held.expected(shown, total) is total
    held.read(shown)
    assert held.expected(shown, total) is total
    last = shown.messages[3]
    # Answered again, before the model has read anything.
    shown.say(ChatMessage(role=Role.ASSISTANT, text=""), last)
    found = held.expected(shown, total)
    assert (found.evicted, found.total) == (20, 120)
    shown.choose(shown.messages[3], 0)
    assert held.expected(shown, total) is total
    shown.say(ChatMessage(role=Role.USER, text="more"))
    assert held.expected(shown, total) is total
    del shown.messages[2:]
    assert held.expected(shown, total).evicted == 0


def test_a_copy_holds_what_it_has_of_the_chat() -> None:
    (total,) = layer_stats(evicted=60, cold=60, hot=40, layers=1)
    shown, held, other = chat(), Held(), Chat()
    held.read(shown)
    assert [each.total for each in held.layers(other, [total])] == [0]
    copy = shown.copy_until(shown.messages[1])
    held.move(shown, copy)
    assert held.layers(copy, [total]) == [total]
    assert [each.total for each in held.layers(shown, [total])] == [0]
    assert held.expected(copy, total).total == 80
