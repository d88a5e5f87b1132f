"""A chat as a file for people (Markdown) or for programs (JSON)."""

import json
from dataclasses import asdict

from app.sessions.chat import Chat, ChatMessage, Thought
from models.text.messages import Role

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
        "schema": 1,
        "title": chat.title,
        "model": chat.model,
        "system": chat.system,
        "messages": [_message(message) for message in chat.messages],
    }
    return json.dumps(found, ensure_ascii=False, indent=2) + "\n"


def _message(message: ChatMessage) -> dict[str, object]:
    return {
        "role": message.role.value,
        "text": message.text,
        "thinking": asdict(message.thought) if message.thought else None,
        "attachments": [asdict(each) for each in message.attachments],
        "state": message.state.value,
        "figures": asdict(message.figures) if message.figures else None,
    }
