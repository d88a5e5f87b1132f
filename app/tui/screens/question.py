"""A question with a few answers."""

from collections.abc import Mapping
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from app.tui.screens.dialog import Dialog

_KEYS = "↑ ↓ choose · ⏎ take it · Esc neither"


class QuestionScreen(Dialog[str | None]):
    """Ends with the key of the chosen answer, or None for Esc.

    The chosen answer is always seen; where the text has no room beside it, that scrolls.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("pageup", "page(-1)", "Above", show=False, priority=True),
        Binding("pagedown", "page(1)", "Below", show=False, priority=True),
    ]

    def __init__(self, title: str, text: str, choices: Mapping[str, str]) -> None:
        super().__init__()
        self._title, self._text, self._choices = title, text, choices
        self._asked = VerticalScroll(classes="asked", can_focus=False)

    def compose(self) -> ComposeResult:
        with Vertical(classes="box") as box:
            box.border_title = self._title
            with self._asked:
                yield Static(self._text, markup=False)
            yield OptionList(
                *(Option(label, id=key) for key, label in self._choices.items()), markup=False
            )
            yield Static(_KEYS, classes="keys")

    def action_page(self, step: int) -> None:
        """Scroll the text."""
        self._asked.scroll_relative(y=step * self._asked.size.height, animate=False)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """An answer was chosen."""
        self.dismiss(event.option_id)
