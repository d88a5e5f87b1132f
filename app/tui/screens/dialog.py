"""What all screens over the chat have in common."""

from typing import ClassVar

from textual.await_complete import AwaitComplete
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen, ScreenResultType


class Dialog(ModalScreen[ScreenResultType]):
    """A screen over the chat, which ends once.

    Textual takes away whatever screen is on top, so a second key or click that comes
    before this one is gone would take away the chat.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "Close", show=False),
        Binding("ctrl+c", "interrupt", "Copy or close", show=False),
    ]

    def dismiss(self, result: ScreenResultType | None = None) -> AwaitComplete:
        """End, with a result; does nothing where another screen is on top."""
        return super().dismiss(result) if self.is_active else AwaitComplete()

    def action_interrupt(self) -> None:
        """Ctrl-C: copies a selection, else closes."""
        if self.get_selected_text():
            self.action_copy_text()
        else:
            self.dismiss()
