"""Commands that take text out of the chat, or bring a file in."""

from collections.abc import Iterable

from app import new_file
from app.chat.mentions import read_text
from app.sessions.chat import Attachment
from app.sessions.export import as_markdown, exported
from app.tui.screens.chat import ChatScreen
from kvcache.errors import EmberError, quoted
from models.text.messages import Role


def copy(screen: ChatScreen, text: str) -> None:
    """Copy the selected message, or the last answer; its code or thinking; or the whole chat."""
    if text == "chat":
        screen.copy(as_markdown(screen.chat.chat), "the chat")
        return
    if text not in ("", "code", "thinking"):
        raise EmberError(f"got {quoted(text)}, expected nothing, code, thinking or chat")
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
    from markdown_it import MarkdownIt

    return [each.content for each in MarkdownIt().parse(text) if each.type == "fence"]


def export(screen: ChatScreen, text: str) -> None:
    """Write the chat to a file that does not exist yet."""
    screen.notify(f"written to {exported(screen.chat.chat, text)}", markup=False)


def screenshot(screen: ChatScreen, text: str) -> None:
    """Write the screen to an SVG file."""
    path = new_file.named(text, title=screen.chat.chat.title, ending=".svg")
    new_file.write(path, screen.app.export_screenshot())
    screen.notify(f"written to {path}", markup=False)


def attach(screen: ChatScreen, text: str) -> None:
    """Send a file along with the next question."""
    if not text:
        raise EmberError("expected a file: /attach notes.md")
    path = new_file.expanded(text)
    screen.composer.attach(Attachment(name=text, text=read_text(path)))
