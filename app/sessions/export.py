"""A chat as a file for people (Markdown) or for programs (JSON), which is read again."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from app import new_file
from app.sessions import rows
from app.sessions.chat import Chat, ChatMessage, Thought
from app.sessions.variants import Place, Way, joined, places
from kvcache.errors import EmberError
from models.text.messages import Role

_SCHEMA = 1
_NAMES = {Role.SYSTEM: "System", Role.USER: "You", Role.ASSISTANT: "Model"}


def as_markdown(chat: Chat) -> str:
    """The chat with a heading for each turn; below it, folded, what else was said."""
    parts = [f"# {chat.title or 'Chat'}", f"Model: {chat.model}"]
    if chat.system:
        parts += ["## System", chat.system]
    for message in chat.messages:
        parts += [f"## {_NAMES[message.role]}"]
        if message.thought:
            parts += [*_folded(message.thought)]
        parts += [message.content]
    for line in _aside(places(chat.messages)):
        parts += [*_folded_line(line)]
    return "\n\n".join(parts) + "\n"


def _folded(thought: Thought) -> tuple[str, ...]:
    """Thinking, as what shows Markdown folds it."""
    return _fold(f"Thinking ({thought.tokens} tokens, {thought.seconds:.0f} s)", thought.text)


def _folded_line(line: Sequence[Place[ChatMessage]]) -> tuple[str, ...]:
    """A variant of a message and what followed it, as what shows Markdown folds it."""
    first = line[0]
    count = len(first.message.variants or ())
    said = [f"**{_NAMES[each.message.role]}:**\n\n{each.message.content}" for each in line]
    about = f"Message {first.position + 1}, variant {first.number + 1} of {count}"
    return _fold(about, "\n\n".join(said))


def _fold(summary: str, text: str) -> tuple[str, ...]:
    """Text that opens with a click; it cannot end its own fold.

    A quotation: what it breaks off in, as a block of code, ends with it.
    """
    lines = text.replace("</details", "&lt;/details").splitlines()
    inside = "\n".join(f"> {line}".rstrip() for line in lines)
    return f"<details>\n<summary>{summary}</summary>", inside, "</details>"


def _aside(found: Sequence[Place[ChatMessage]]) -> list[list[Place[ChatMessage]]]:
    """The lines that are not shown."""
    lines: list[list[Place[ChatMessage]]] = []
    for each in found:
        if each.way is Way.BEGINS:
            lines.append([])
        if each.way is not Way.SHOWN:
            lines[-1].append(each)
    return lines


def as_json(chat: Chat) -> str:
    """One JSON object, with the figures of each answer.

    aside: variants of messages, each with what was said after it; `after` counts the messages
    of the object from 1, 0 is the beginning.
    """
    found = places(chat.messages)
    numbers: dict[ChatMessage | None, int] = {
        None: 0,
        **{each.message: at for at, each in enumerate(found, start=1)},
    }
    written = {
        "schema": _SCHEMA,
        "title": chat.title,
        "model": chat.model,
        "system": chat.system,
        "sampling": dict(chat.sampling),
        "messages": [_message(each) for each in found if each.way is Way.SHOWN],
        "aside": [
            {"after": numbers[line[0].follows], "messages": [_message(each) for each in line]}
            for line in _aside(found)
        ],
    }
    return json.dumps(written, ensure_ascii=False, indent=2) + "\n"


def exported(chat: Chat, name: str) -> Path:
    """Write the chat to a new file, one of its title where none is named; JSON for .json.

    Raises EmberError where there is nothing to write, or it cannot be.
    """
    if not chat.messages:
        raise EmberError("nothing to export yet: ask something first")
    path = new_file.named(name, title=chat.title, ending=".md")
    new_file.write(path, as_json(chat) if path.suffix == ".json" else as_markdown(chat))
    return path


def from_json(text: str) -> Chat:
    """The chat that `as_json` wrote, unsaved. Raises EmberError for what is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EmberError(f"this is no JSON ({error}): give a chat that was exported") from error
    if not isinstance(found, dict) or found.get("schema") != _SCHEMA:
        raise EmberError(
            f"this is no chat that ember exported as JSON: expected an object of schema {_SCHEMA}"
        )
    messages = found.get("messages")
    named = {name: found.get(name, "") for name in ("title", "model", "system")}
    if not isinstance(messages, list) or not all(isinstance(each, str) for each in named.values()):
        raise EmberError("this chat has no messages, or its title is no text: export it again")
    return Chat(
        title=rows.storable(named["title"]),
        model=rows.storable(named["model"]),
        system=rows.storable(named["system"]),
        sampling=rows.sampling(json.dumps(found.get("sampling"))),
        messages=joined(_placed(messages, found.get("aside", []))),
    )


def _placed(shown: list[object], aside: object) -> list[Place[ChatMessage]]:
    """The messages of a chat and of its lines aside, and where they stand."""
    made: list[Place[ChatMessage]] = []
    lines = [{"after": 0, "messages": shown}, *(aside if isinstance(aside, list) else ())]
    for at, line in enumerate(lines):
        match line:
            case {"after": int(after), "messages": list(messages)} if 0 <= after <= len(made):
                pass
            case _:
                raise EmberError(f"line {at} aside has no place: export the chat again")
        follows = made[after - 1].message if after else None
        for number, each in enumerate(messages):
            way = Way.GOES_ON if number else Way.BEGINS
            made.append(_place(len(made) + 1, each, way if at else Way.SHOWN, follows))
            follows = made[-1].message
    return made


def _place(number: int, found: object, way: Way, follows: ChatMessage | None) -> Place[ChatMessage]:
    message = _read(number, found)
    variant = found.get("variant") if isinstance(found, dict) else None
    return Place(
        message=message,
        way=way,
        follows=follows,
        number=variant - 1 if type(variant) is int and variant > 0 else 0,
        position=number,
    )


def _read(number: int, found: object) -> ChatMessage:
    """A message, by way of what a row of it would be."""
    known = sorted(each.value for each in _NAMES)
    if not isinstance(found, dict) or found.get("role") not in known:
        raise EmberError(f"message {number} has no role of {', '.join(known)}")
    if not isinstance(found.get("text"), str):
        raise EmberError(f"message {number} has no text")
    thought = found.get("thinking")
    thought = thought if isinstance(thought, dict) else {}
    return rows.message(
        {
            "role": found["role"],
            "text": rows.storable(found["text"]),
            "attachments": json.dumps(found.get("attachments")),
            "state": found.get("state"),
            "figures": json.dumps(found.get("figures")),
            "error": None,
            "thinking": thought.get("text"),
            "thinking_tokens": thought.get("tokens"),
            "thinking_seconds": thought.get("seconds"),
        }
    )


def _message(place: Place[ChatMessage]) -> dict[str, object]:
    message = place.message
    return {
        "role": message.role.value,
        "text": message.text,
        "thinking": asdict(message.thought) if message.thought else None,
        "attachments": [asdict(each) for each in message.attachments],
        "state": message.state.value,
        "figures": asdict(message.figures) if message.figures else None,
        **({"variant": place.number + 1} if message.variants else {}),
    }
