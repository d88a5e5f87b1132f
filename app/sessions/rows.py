"""From rows to messages and back. A row of any kind is read: what is damaged is left out.

Knows no database.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from enum import Enum
from typing import Any, TypeVar

from app.sessions.chat import Attachment, ChatMessage, Figures, State, Thought
from app.sessions.variants import Place, Way
from models.text.messages import Role

E = TypeVar("E", bound=Enum)
_LAST_SECOND = 253402300799.0  # of the year 9999
_MOST_VARIANTS = 1 << 52


def places(found: Sequence[dict[str, Any]]) -> list[Place[ChatMessage]]:
    """The messages that a chat's rows hold, by the rows' order, and where they stand.

    One whose place is lost stands aside at the beginning.
    """
    made: list[Place[ChatMessage]] = []
    known: dict[object, ChatMessage] = {}
    before: ChatMessage | None = None
    for row in found:
        way, read, position = _member(row["aside"], Way.SHOWN), message(row), row["position"]
        follows = before if way is Way.SHOWN else known.get(row["follows"])
        known[row["id"]] = read
        before = read if way is Way.SHOWN else before
        made.append(
            Place(
                message=read,
                way=Way.BEGINS if way is Way.GOES_ON and follows is None else way,
                follows=follows,
                number=count(row["number"], _MOST_VARIANTS),
                position=position if isinstance(position, int) else -1,
            )
        )
    return made


def message(row: dict[str, Any]) -> ChatMessage:
    """The message that a row holds."""
    state = _member(row["state"], State.COMPLETE)
    return ChatMessage(
        role=_member(row["role"], Role.ASSISTANT),
        text=text(row["text"]),
        attachments=_attachments(row["attachments"]),
        # Whoever was writing this answer has died.
        state=State.STOPPED if state is State.STREAMING else state,
        figures=_figures(row["figures"]),
        error=text(row["error"]) or None,
        thought=_thought(row),
    )


def is_whole(row: dict[str, Any]) -> bool:
    """Whether the row's message has all that was written."""
    read, attachments = message(row), _json(row["attachments"])
    return (
        isinstance(row["text"], str)
        and isinstance(row["thinking"], str)
        and row["role"] == read.role.value
        and isinstance(attachments, list)
        and len(attachments) == len(read.attachments)
    )


def held(place: Place[ChatMessage]) -> tuple[object, ...]:
    """What a row of a message would hold; cheap to make and to compare."""
    each = place.message
    return (
        place.position,
        place.way,
        None if place.way is Way.SHOWN else place.follows,
        place.number,
        each.role,
        each.text,
        each.attachments,
        each.state,
        each.figures,
        each.error,
        each.thought,
    )


def values(place: Place[ChatMessage], follows: int) -> dict[str, object]:
    """The columns of a message's row. follows: the row of the message before it, 0 for none."""
    each = place.message
    return {
        "position": place.position,
        "aside": place.way.value,
        "follows": 0 if place.way is Way.SHOWN else follows,
        "number": place.number,
        "role": each.role.value,
        "text": storable(each.text),
        "attachments": json.dumps([asdict(one) for one in each.attachments]),
        "state": each.state.value,
        "figures": json.dumps(asdict(each.figures)) if each.figures else None,
        "error": storable(each.error) if each.error else None,
        "thinking": storable(each.thought.text) if each.thought else "",
        "thinking_tokens": each.thought.tokens if each.thought else 0,
        "thinking_seconds": each.thought.seconds if each.thought else 0.0,
    }


def sampling(column: object) -> dict[str, float]:
    """The sampling settings of a chat: those of its own, by name."""
    found = _json(column)
    return {
        name: value
        for name, value in (found.items() if isinstance(found, dict) else ())
        if type(value) in (int, float) and math.isfinite(value)
    }


def count(value: object, most: int) -> int:
    """A number of things of which there are `most`, from a column of any type."""
    return min(max(value, 0), most) if isinstance(value, int) else 0


def storable(value: str) -> str:
    """Text that SQLite takes: lone surrogates have no UTF-8."""
    return value.encode("utf-8", "replace").decode("utf-8")


def text(value: object) -> str:
    """Text from a column of any type."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)


def seconds(value: object) -> float:
    """A time that a calendar has, from a column of any type."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return 0.0
    return min(max(float(value), 0.0), _LAST_SECOND)


def _member(value: object, otherwise: E) -> E:
    """The enum's member of that value."""
    return next((each for each in type(otherwise) if each.value == value), otherwise)


def _attachments(column: object) -> tuple[Attachment, ...]:
    found = _json(column)
    return tuple(
        Attachment(name=storable(each["name"]), text=storable(each["text"]))
        for each in (found if isinstance(found, list) else ())
        if isinstance(each, dict) and all(type(each.get(key)) is str for key in ("name", "text"))
    )


def _thought(row: dict[str, Any]) -> Thought | None:
    found, tokens = text(row["thinking"]), row["thinking_tokens"]
    if not found:
        return None
    tokens = tokens if isinstance(tokens, int) and tokens > 0 else 0
    return Thought(text=found, tokens=tokens, seconds=seconds(row["thinking_seconds"]))


def _figures(column: object) -> Figures | None:
    found = _json(column)
    if not isinstance(found, dict):
        return None
    known: dict[str, Any] = {each.name: found.get(each.name) for each in fields(Figures)}
    for each in fields(Figures):
        value = known[each.name]
        if type(value) is not each.type or (type(value) is float and not math.isfinite(value)):
            return None
    return Figures(**known)


def _json(column: object) -> Any:
    """What a column of JSON says; None for what is none."""
    try:
        return json.loads(column) if isinstance(column, str | bytes) else None
    except (ValueError, RecursionError):
        return None
