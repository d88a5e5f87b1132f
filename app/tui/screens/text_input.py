"""Asks for one line of text."""

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import Input

from app.tui.screens.dialog import Dialog


class TextInputScreen(Dialog[str | None]):
    """Ends with the text, or None for Esc."""

    def __init__(self, title: str, text: str) -> None:
        super().__init__()
        self._title, self._text = title, text

    def compose(self) -> ComposeResult:
        with Vertical(classes="box") as box:
            box.border_title = self._title
            yield Input(self._text)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter was pressed; blank text changes nothing."""
        self.dismiss(event.value.strip() or None)
