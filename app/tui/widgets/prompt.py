"""Where the user types: grows with the text, Enter sends, Ctrl-J breaks the line."""

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea

from app.tui.text.inert import inert

# A longer paste becomes an attachment: nobody edits that much in eight lines.
_MAX_PASTE = 4000


class Prompt(TextArea):
    """A text area for one question."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "Send", show=False, priority=True),
        Binding("ctrl+j,shift+enter", "newline", "Newline", show=False, priority=True),
        Binding("ctrl+c", "screen.interrupt", "Stop or quit", show=False, priority=True),
    ]

    class Submitted(Message):
        """The user sends the text."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class LongPaste(Message):
        """Too much was pasted to be edited here."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    class EmptyKey(Message):
        """A key that means something else while the prompt is empty."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    _KEYS_WHEN_EMPTY: ClassVar = {"up", "home", "end", "tab", "ctrl+d"}
    _KEYS_ALWAYS: ClassVar = {"pageup", "pagedown"}

    def __init__(self) -> None:
        super().__init__(
            soft_wrap=True,
            show_line_numbers=False,
            compact=True,
            highlight_cursor_line=False,
            placeholder="Ask, / commands, @ file",
            tab_behavior="focus",
        )

    def action_submit(self) -> None:
        """Send what is typed; an empty prompt too, it may mean something."""
        self.post_message(self.Submitted(self.text))

    def action_newline(self) -> None:
        """Break the line."""
        self.insert("\n")

    def take(self) -> str:
        """The text; the prompt is empty afterwards."""
        text = self.text
        self.load_text("")
        return text

    def put(self, text: str) -> None:
        """Replace the text, with the cursor at its end."""
        self.load_text(text)
        self.move_cursor(self.document.end)

    async def _on_key(self, event: events.Key) -> None:
        if event.key in self._KEYS_ALWAYS or (not self.text and event.key in self._KEYS_WHEN_EMPTY):
            event.stop()
            event.prevent_default()
            self.post_message(self.EmptyKey(event.key))
            return
        await super()._on_key(event)

    async def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default()
        event.stop()
        text = inert(event.text.replace("\r", "\n") if "\n" not in event.text else event.text)
        if len(text) > _MAX_PASTE:
            self.post_message(self.LongPaste(text))
        elif not self.read_only:
            self.insert(text)
