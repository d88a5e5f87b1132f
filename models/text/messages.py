"""A conversation: who says what, and what is done to it for a format that wants it otherwise.

Knows no template and no tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NoReturn


class Role(StrEnum):
    """Who speaks."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        roles = ", ".join(cls)
        raise ValueError(f"got a message of role {value!r}, expected one of {roles}")


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation.

    thinking: what the model thought before it, without marks. more: of calls of tools and their
    results, by the names that templates read (`tool_calls`, `tool_call_id`, `name`).
    """

    role: Role
    content: str
    thinking: str = ""
    more: Mapping[str, object] = field(default_factory=dict, hash=False)


def opening(system: str | None) -> list[Message]:
    """How a conversation begins: with the system prompt, where there is one."""
    return [Message(role=Role.SYSTEM, content=system)] if system else []


def conversation(prompt: str, *, system: str | None = None) -> list[Message]:
    """A conversation of one question."""
    return [*opening(system), Message(role=Role.USER, content=prompt)]


def without_system(messages: Sequence[Message]) -> list[Message]:
    """The system prompt put before the first question, or alone in its place."""
    system = [message.content for message in messages if message.role is Role.SYSTEM]
    rest = [message for message in messages if message.role is not Role.SYSTEM]
    if not system:
        return rest
    if rest and rest[0].role is Role.USER:
        system.append(rest.pop(0).content)
    return [Message(role=Role.USER, content="\n\n".join(system)), *rest]


def with_word(messages: Sequence[Message], word: str) -> list[Message]:
    """A word at the end of the system prompt, or alone in its place."""
    if messages and messages[0].role is Role.SYSTEM:
        first = replace(messages[0], content=f"{messages[0].content}\n{word}")
        return [first, *messages[1:]]
    return [Message(role=Role.SYSTEM, content=word), *messages]


def joined(messages: Sequence[Message]) -> list[Message]:
    """Neighbours of one role as one message."""
    joined: list[Message] = []
    for message in messages:
        is_plain = not message.more and message.role is not Role.TOOL
        if is_plain and joined and joined[-1].role is message.role:
            last = joined.pop()
            thought = "\n\n".join(filter(None, (last.thinking, message.thinking)))
            content = f"{last.content}\n\n{message.content}"
            message = replace(message, content=content, thinking=thought)
        joined.append(message)
    return joined
