"""A chat as a file for people (Markdown) or for programs (JSON), which is read again."""

import json
from dataclasses import asdict
from pathlib import Path

from app import new_file
from app.sessions import rows
from app.sessions.chat import Chat, ChatMessage, Thought
from kvcache.errors import EmberError
from models.text.messages import Role

_SCHEMA = 1
_NAMES = {Role.SYSTEM: "System", Role.USER: "You", Role.ASSISTANT: "Model"}


def as_markdown(chat: Chat) -> str:
    """The chat with a heading for each turn."""
    parts = [f"# {chat.title or 'Chat'}", f"Model: {chat.model}"]
    if chat.system:
        parts += ["## System", chat.system]
    for message in chat.messages:
        parts += [f"## {_NAMES[message.role]}"]
        if message.thought:
            parts += [*_folded(message.thought)]
        parts += [message.content]
    return "\n\n".join(parts) + "\n"


def _folded(thought: Thought) -> tuple[str, ...]:
    """Thinking, as what shows Markdown folds it; it cannot end its own fold.

    A quotation: what it breaks off in, as a block of code, ends with it.
    """
    took = f"{thought.tokens} tokens, {thought.seconds:.0f} s"
    lines = thought.text.replace("</details", "&lt;/details").splitlines()
    inside = "\n".join(f"> {line}".rstrip() for line in lines)
    return f"<details>\n<summary>Thinking ({took})</summary>", inside, "</details>"


def as_json(chat: Chat) -> str:
    """One JSON object, with the figures of each answer."""
    found = {
        "schema": _SCHEMA,
        "title": chat.title,
        "model": chat.model,
        "system": chat.system,
        "sampling": dict(chat.sampling),
        "messages": [_message(message) for message in chat.messages],
    }
    return json.dumps(found, ensure_ascii=False, indent=2) + "\n"


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
        messages=[_read(at, each) for at, each in enumerate(messages, start=1)],
    )


def _read(number: int, found: object) -> ChatMessage:
    """A message, by way of what a row of it would be."""
    known = {each.value for each in Role}
    if not isinstance(found, dict) or found.get("role") not in known:
        raise EmberError(f"message {number} has no role of {', '.join(sorted(known))}")
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


def _message(message: ChatMessage) -> dict[str, object]:
    return {
        "role": message.role.value,
        "text": message.text,
        "thinking": asdict(message.thought) if message.thought else None,
        "attachments": [asdict(each) for each in message.attachments],
        "state": message.state.value,
        "figures": asdict(message.figures) if message.figures else None,
    }
