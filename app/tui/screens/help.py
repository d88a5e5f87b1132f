"""Keys, commands, and what the words and marks on the screen mean."""

from collections.abc import Sequence
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll

from app.chat.command import Command
from app.chat.controller import ChatController
from app.chat.terms import glossary
from app.tui.screens.dialog import Page, closing
from app.tui.widgets.columns import Columns

_KEYS = (
    ("⏎", "send"),
    ("^J, Shift-⏎", "new line"),
    ("Esc", "stop the answer; close what is open"),
    ("Tab", "complete; on an empty prompt: select a message, or a starter"),
    ("↑ ↓ then", "select another, for /copy /edit /fork; Esc or Tab: none"),
    ("↑ ↓ on the first and last line", "what was asked before, and back"),
    ("← → on an empty prompt", "other variants of the selected message, or the last answer"),
    ("^↑", "edit the last question"),
    ("PgUp PgDn, wheel", "scroll, also while text arrives"),
    ("Home End on an empty prompt", "first message; end, and follow it"),
    ("^T", "open or fold the thinking before an answer: the selected, or the last"),
    ("^C", "copy a selection, stop or close what is open; else twice: quit"),
    ("^D on an empty prompt", "quit"),
    ("^Z, ^_", "back to the shell, where fg returns; undo in the prompt"),
    ("^P", "palette of all commands"),
    ("@", "attach a text file"),
)
_MARKS = (
    ("▒ in the margin", "these tokens are in the cold tier"),
    ("× in the margin", "these tokens were evicted: the model no longer sees them"),
    ("◆ █ ▒ ░", "sink, hot, cold, free"),
)


class HelpScreen(Page):
    """A page to read."""

    BINDINGS: ClassVar[list[BindingType]] = closing("f1,q,enter")

    def __init__(self, commands: Sequence[Command[Any]], chat: ChatController) -> None:
        super().__init__()
        self._commands, self._chat = commands, chat
        self._box = VerticalScroll(classes="box")

    def compose(self) -> ComposeResult:
        commands = [
            (f"/{each.name} {each.usage}".rstrip(), f"{each.about} {each.key}".rstrip())
            for each in self._commands
        ]
        with self._box as box:
            box.border_title = "Help"
            yield Columns("Keys", _KEYS)
            yield Columns("Words", glossary(self._chat))
            yield Columns("Marks", _MARKS)
            yield Columns("Commands", commands)

    def on_mount(self) -> None:
        """Arrow keys scroll."""
        self._box.focus()
