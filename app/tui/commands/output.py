"""Commands that take text out of the chat, or bring a file in."""

import re
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain, count
from pathlib import Path

from markdown_it import MarkdownIt

from app.sessions.chat import Attachment
from app.sessions.export import as_json, as_markdown
from app.tui.chat.mentions import read_text
from app.tui.screens.chat import ChatScreen
from kvcache.errors import EmberError, reason
from models.text.messages import Role

_NOT_IN_NAMES = re.compile(r"[^\w-]+")


def copy(screen: ChatScreen, text: str) -> None:
    """Copy the selected message, or the last answer; its code or thinking; or the whole chat."""
    if text == "chat":
        screen.copy(as_markdown(screen.chat.chat), "the chat")
        return
    if text not in ("", "code", "thinking"):
        raise EmberError(f"got {text!r}, expected nothing, code, thinking or chat")
    answers = [each for each in screen.chat.chat.messages if each.role is Role.ASSISTANT]
    message = screen.conversation.selected or (answers[-1] if answers else None)
    if message is None:
        raise EmberError("nothing to copy yet: ask something first")
    if not text:
        screen.copy(message.text, "the message")
        return
    if text == "thinking":
        if message.thought is None:
            raise EmberError("this answer has no thinking")
        screen.copy(message.thought.text, "the thinking")
        return
    blocks = code_blocks(message.text)
    if not blocks:
        raise EmberError("this answer has no code block")
    screen.copy("\n\n".join(blocks), f"{len(blocks)} code block{'s' * (len(blocks) > 1)}")


def copy_choices(_screen: ChatScreen) -> Iterable[str]:
    """What can be copied."""
    return ("code", "thinking", "chat")


def code_blocks(text: str) -> list[str]:
    """The fenced blocks of a Markdown text."""
    return [each.content for each in MarkdownIt().parse(text) if each.type == "fence"]


def export(screen: ChatScreen, text: str) -> None:
    """Write the chat to a file that does not exist yet."""
    chat = screen.chat.chat
    if not chat.messages:
        raise EmberError("nothing to export yet: ask something first")
    path = _path(text) if text else _unused(f"{_slug(chat.title)}.md")
    content = as_json(chat) if path.suffix == ".json" else as_markdown(chat)
    _write(path, content)
    screen.notify(f"written to {path}", markup=False)


def screenshot(screen: ChatScreen, text: str) -> None:
    """Write the screen to an SVG file."""
    path = _path(text) if text else _unused(f"{_slug(screen.chat.chat.title)}.svg")
    _write(path, screen.app.export_screenshot())
    screen.notify(f"written to {path}", markup=False)


def attach(screen: ChatScreen, text: str) -> None:
    """Send a file along with the next question."""
    if not text:
        raise EmberError("expected a file: /attach notes.md")
    path = _path(text)
    screen.composer.attach(Attachment(name=text, text=read_text(path)))


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise EmberError(f"{text}: no such user; write the path in full") from error


def _unused(name: str) -> Path:
    """A file of that name, numbered where there is one."""
    path = Path(name)
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return next(each for each in chain([path], numbered) if not each.exists())


def _write(path: Path, content: str) -> None:
    try:
        with path.open("x", encoding="utf-8", errors="replace") as file:
            file.write(content)
    except FileExistsError as error:
        raise EmberError(f"{path} exists already: name another file") from error
    except (OSError, ValueError) as error:
        # Half a file would stand in the way of the whole one.
        with suppress(OSError, ValueError):
            path.unlink()
        raise EmberError(
            f"{path} cannot be written: {reason(error)}; name a file in a folder that takes it"
        ) from error


def _slug(title: str) -> str:
    return _NOT_IN_NAMES.sub("-", title).strip("-").lower()[:48] or "chat"
