"""What all screens over the chat have in common."""

from typing import Any, ClassVar

from textual import events
from textual.await_complete import AwaitComplete
from textual.binding import Binding, BindingType
from textual.geometry import Offset
from textual.screen import ModalScreen, ScreenResultType
from textual.widgets import Select
from textual.widgets._select import SelectOverlay


def closing(keys: str, action: str = "dismiss") -> list[BindingType]:
    """Bindings of keys that close a screen.

    With priority, so that what is typed after them is for what is below; and without, for a
    key that was pressed before the screen was there.
    """
    return [Binding(keys, action, "Close", show=False, priority=each) for each in (True, False)]


class Dialog(ModalScreen[ScreenResultType]):
    """A screen over the chat, which ends once.

    Textual takes away whatever screen is on top, so a second key or click that comes
    before this one is gone would take away the chat.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        *closing("escape", "close"),
        Binding("ctrl+c", "interrupt", "Copy or close", show=False),
    ]

    def on_mount(self) -> None:
        """Be laid out for this terminal from the first frame on: Textual tells it later."""
        below = self.app.screen_stack[-2]
        self.add_class(*(each for each in below.classes if each.startswith("-")))

    def dismiss(self, result: ScreenResultType | None = None) -> AwaitComplete:
        """End, with a result; does nothing where another screen is on top."""
        return super().dismiss(result) if self.is_active else AwaitComplete()

    def take_keys(self) -> None:
        """Its first field has the focus where nothing has; as `ChatScreen.take_keys`."""
        if self.focused is None and self.is_mounted:
            self.focus_next()

    def action_close(self) -> None:
        """Close a list that is dropped down, else the screen."""
        if (dropped := self._dropped) is not None:
            dropped.expanded = False
        else:
            self.dismiss()

    def closes_list(self, pressed: Offset) -> bool:
        """Close a list that is dropped down where the mouse is pressed beside it.

        Textual 8.2 closes it for a press on another field alone, and drops it down again where
        its own field is clicked. Returns whether one was closed: the click does no more then.
        """
        dropped = self._dropped
        if dropped is None or any(
            each.region.contains_point(pressed) for each in dropped.query(SelectOverlay)
        ):
            return False
        dropped.focus()
        dropped.expanded = False
        return True

    @property
    def _dropped(self) -> Select[Any] | None:
        """The field whose list is dropped down."""
        return next((each for each in self.query(Select) if each.expanded), None)

    def action_interrupt(self) -> None:
        """Ctrl-C: copies a selection, else closes."""
        if self.get_selected_text():
            self.action_copy_text()
            self.clear_selection()
        else:
            self.dismiss()


class Page(Dialog[None]):
    """A dialog that is only read: who types leaves it, and types into the prompt.

    It binds q to `dismiss`.
    """

    def leave(self, event: events.Key | events.Paste) -> None:
        """Make way for what is typed; a q is meant to close it."""
        if isinstance(event, events.Paste) or (event.is_printable and event.key != "q"):
            self.dismiss()
