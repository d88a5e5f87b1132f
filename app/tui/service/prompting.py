"""From a conversation to a prompt's token ids, and which message ends where.

Knows no thread; the engine says which ids its cache holds. What a window cannot
hold is left out only where the ask says so, and by whole turns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event as Flag

from app.engine import Engine
from app.tui.service.contract import Ask
from models.loader import LoadedModel
from models.text.chat_template import Message, Role


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Token ids; `ends` and `dropped` as in `service.Prepared`."""

    ids: list[int]
    ends: tuple[int, ...]
    dropped: int


def make_prompt(engine: Engine, ask: Ask, cancel: Flag | None = None) -> Prompt:
    """The ids that make the engine's model answer, or go on with, the conversation.

    With `ask.drop_oldest` the oldest turns are left out, so that the prompt fits
    the window with room for an answer; the system prompt and the last question stay.
    `cancel` may be set from any thread. Raises ChatTemplateError.
    """
    messages, window = ask.messages, engine.plan.max_tokens
    ends = _ends(engine.loaded, messages, cancel)
    dropped = 0
    if ask.drop_oldest:
        room = window - min(ask.max_tokens, window // 2)
        dropped = _too_many(messages, ends, room)
        messages = _without_oldest(messages, dropped)
    encode = engine.encode_continued if ask.continues else engine.encode_chat
    ids = encode(messages, cancel)
    excess = ends[-1] - len(ids)
    # What was left out is missing at the start; what texts cut apart have too much, everywhere.
    shifts = [excess if dropped else excess * at // len(ends) for at in range(1, len(ends) + 1)]
    ends = tuple(max(end - shift, 0) for end, shift in zip(ends, shifts, strict=True))
    return Prompt(ids=ids, ends=ends, dropped=dropped)


def _ends(loaded: LoadedModel, messages: Sequence[Message], cancel: Flag | None) -> tuple[int, ...]:
    """Tokens up to the end of what each message says; the last one's to the end of the prompt.

    One that the format leaves out has none of its own.
    """
    text = loaded.template.render(messages, cancel=cancel)
    total = done = 0
    ends = []
    for message in messages:
        said = message.content.strip()
        at = text.find(said, done)
        stop = done if at < 0 else at + len(said)
        if message is messages[-1]:
            stop = len(text)
        added = text[done:stop]
        total += len(loaded.tokenizer.encode(added, add_special=False, parse_special=True))
        ends.append(total)
        done = stop
    return tuple(ends)


def _too_many(messages: Sequence[Message], ends: Sequence[int], room: int) -> int:
    """How many messages after the system prompt must go for the rest to fit `room`."""
    first = _first_turn(messages)
    kept_head = ends[first - 1] if first else 0
    for count in range(len(messages) - first):
        opens_turn = messages[first + count].role is Role.USER
        head = kept_head if count else 0
        start = ends[first + count - 1] if count else 0
        if opens_turn and head + ends[-1] - start <= room:
            return count
    last_user = max((at for at, each in enumerate(messages) if each.role is Role.USER), default=0)
    return max(last_user - first, 0)


def _without_oldest(messages: Sequence[Message], dropped: int) -> tuple[Message, ...]:
    first = _first_turn(messages)
    return (*messages[:first], *messages[first + dropped :])


def _first_turn(messages: Sequence[Message]) -> int:
    return 1 if messages and messages[0].role is Role.SYSTEM else 0
