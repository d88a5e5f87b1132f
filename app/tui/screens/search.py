"""A list that typing narrows: the frame of the chats and of the palette."""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Generic, Self, TypeVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ScreenResultType
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from app.tui.screens.dialog import Dialog
from app.tui.screens.question import QuestionScreen
from kvcache.errors import EmberError

_DELETE = "delete"

T = TypeVar("T")


class _Line(Option, Generic[T]):
    """What a line is of stays with it: typing may list others before a click on it is told of."""

    def __init__(self, line: Content, item: T) -> None:
        super().__init__(line)
        self.item = item


class _Lines(OptionList):
    """A list that may be another by the time a click on it is heard, and drawn anew later still.

    Textual 8.2 looks for what was clicked by its number, and fails where there is none.
    """

    _listed_at = 0.0

    def set_options(self, options: Iterable[Any]) -> Self:
        self._listed_at = time.monotonic()
        return super().set_options(options)

    async def _on_click(self, event: events.Click) -> None:
        clicked: int | None = event.style.meta.get("option")
        is_gone = clicked is not None and clicked >= self.option_count
        if is_gone or event.time < self._listed_at:
            event.prevent_default()


class _Search(Input):
    """Where nothing is typed, the ends of the line are those of the list."""

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool:
        return action not in ("home", "end") or bool(self.value)


class SearchScreen(Dialog[ScreenResultType], Generic[ScreenResultType, T]):
    """Typing searches, arrows choose, Enter or a click ends with what `result` says."""

    TITLE: ClassVar[str]
    PLACEHOLDER: ClassVar[str]
    KEYS: ClassVar[str]
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Above", show=False),
        Binding("down", "move(1)", "Below", show=False),
        Binding("pageup", "move(-8)", "Above", show=False),
        Binding("pagedown", "move(8)", "Below", show=False),
        Binding("home", "move(-100000)", "First", show=False),
        Binding("end", "move(100000)", "Last", show=False),
    ]

    def __init__(self, search: str = "") -> None:
        super().__init__()
        self._listed: Sequence[T] = []
        self._input = _Search(search, placeholder=self.PLACEHOLDER, select_on_focus=False)
        self._chooser = _Lines(markup=False)
        self._box = Vertical(classes="box tall")
        self._said = Static(markup=False, classes="said")
        self._said.display = False

    @abstractmethod
    def find(self, text: str) -> Sequence[T]:
        """What there is for the text that is typed; the best first. May raise EmberError."""

    @abstractmethod
    def line(self, item: T) -> Content:
        """How an item is shown."""

    @abstractmethod
    def result(self, item: T) -> ScreenResultType:
        """What the screen ends with."""

    def nothing(self, text: str) -> str:
        """What stands in place of an empty list, if anything."""
        return "nothing found" if text else "nothing here yet"

    def compose(self) -> ComposeResult:
        with self._box as box:
            box.border_title = self.TITLE
            yield self._input
            yield self._chooser
            yield self._said
            yield Static(self.KEYS, markup=False, classes="keys")

    def on_mount(self) -> None:
        """List all of them."""
        self._chooser.can_focus = False
        self._input.focus()
        self.refresh_list()

    def refresh_list(self) -> None:
        """List anew what is searched for."""
        at = self._chooser.highlighted or 0
        text = self._input.value.strip()
        try:
            self._listed, nothing = self.find(text), self.nothing(text)
        except EmberError as error:
            self._listed, nothing = [], str(error)
        shown: list[Option] = [_Line(self.line(each), each) for each in self._listed]
        if not shown and nothing:
            shown = [Option(nothing, disabled=True)]
        self._chooser.set_options(shown)
        if self._listed:
            self._chooser.highlighted = min(at, len(self._listed) - 1)

    @property
    def chosen(self) -> T | None:
        """The highlighted item."""
        at = self._chooser.highlighted
        return self._listed[at] if at is not None and at < len(self._listed) else None

    def take(self, item: T) -> None:
        """Enter on an item, or a click."""
        self.dismiss(self.result(item))

    def attempt(self, step: Callable[[], None]) -> None:
        """Do what the user asks for; say why where that fails, and list what there is then."""
        try:
            step()
        except EmberError as error:
            self.notify(str(error), severity="error", markup=False)
        self.refresh_list()

    def ask_to_delete(self, what: str, text: str, delete: Callable[[], None]) -> None:
        """Delete it, once that is confirmed."""

        def done(choice: str | None) -> None:
            if choice == _DELETE:
                self.attempt(delete)

        choices = {"keep": "Keep it", _DELETE: "Delete it"}
        text = f"{text}\nIt cannot be brought back."
        self.app.push_screen(QuestionScreen(f"Delete this {what}?", text, choices), done)

    def say(self, text: str, *, is_error: bool = False) -> None:
        """A line below the list; none for an empty text."""
        self._said.set_class(is_error, "wrong")
        self._said.update(text)
        self._said.display = bool(text)

    def action_move(self, step: int) -> None:
        """Choose another."""
        if self._listed:
            at = (self._chooser.highlighted or 0) + step
            self._chooser.highlighted = min(max(at, 0), len(self._listed) - 1)

    @on(Input.Changed)
    def _search(self) -> None:
        self._chooser.highlighted = None
        self.refresh_list()

    @on(Input.Submitted)
    def _open(self) -> None:
        if (chosen := self.chosen) is not None:
            self.take(chosen)

    @on(OptionList.OptionSelected)
    def _clicked(self, event: OptionList.OptionSelected) -> None:
        if isinstance(event.option, _Line):
            self.take(event.option.item)
