"""A question with a few answers."""

from collections.abc import Mapping

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from app.tui.screens.dialog import Dialog

_KEYS = "↑ ↓ choose · ⏎ take it · Esc neither"


class QuestionScreen(Dialog[str | None]):
    """Ends with the key of the chosen answer, or None for Esc."""

    def __init__(self, title: str, text: str, choices: Mapping[str, str]) -> None:
        super().__init__()
        self._title, self._text, self._choices = title, text, choices

    def compose(self) -> ComposeResult:
        with Vertical(classes="box") as box:
            box.border_title = self._title
            yield Static(self._text, markup=False)
            yield OptionList(
                *(Option(label, id=key) for key, label in self._choices.items()), markup=False
            )
            yield Static(_KEYS, classes="keys")

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """An answer was chosen."""
        self.dismiss(event.option_id)
