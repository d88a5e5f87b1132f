"""The full-screen chat as a program."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from signal import SIGHUP
from typing import Any, ClassVar

from textual import events, on
from textual.app import App
from textual.binding import Binding, BindingType
from textual.css.query import NoMatches
from textual.errors import NoWidget
from textual.filter import LineFilter
from textual.geometry import Offset
from textual.notifications import Notify, SeverityLevel
from textual.screen import Screen
from textual.widgets import Input

from app.chat.controller import ChatController
from app.chat.personas import Personas
from app.chat.settings import Preferences, Settings
from app.chat.state import Draft
from app.interrupt import exit_code
from app.service.contract import ModelService
from app.sessions.chat import Chat
from app.sessions.store import SessionStore
from app.tui.commands import COMMANDS
from app.tui.model_offer import ModelOffer
from app.tui.notice import Notice, fitted, make_room
from app.tui.screens import copying
from app.tui.screens.chat import ChatScreen
from app.tui.screens.dialog import Dialog, Page
from app.tui.screens.too_long import TooLongScreen
from app.tui.terminal import title
from app.tui.terminal.driver import ForgivingDriver, TerminalGone
from app.tui.terminal.inert_lines import InertLines
from app.tui.theme import EMBER, EMBER_LIGHT, readable_variables
from app.tui.typing_order import TypingOrder
from kvcache.errors import quoted
from models.finding.catalogue import DEFAULT_NAME

_MOST_OF_FIELD = 4000
_FIRST_BUTTON = 1
# Columns that a hand moves in a click.
_HAND_SHAKES = 2


class ChatApp(App[None]):
    """Owns the controller, the settings and the screens.

    The service and the store are their maker's to close. settings: those in
    force, flags included. settings_path: where those that the user changes are
    kept, None for nowhere; personas_path: of prompts that are saved, likewise.
    chat: a saved chat to go on with.
    model: what to load; empty for the default, which is offered before it is fetched.
    first: is sent as if it were typed, if anything.
    """

    CSS_PATH = Path(__file__).parent / "ember.tcss"
    TITLE = "ember"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (84, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-low"), (14, "-high")]  # noqa: RUF012
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+z", "suspend_process", "Back to the shell", show=False, priority=True),
    ]

    def __init__(
        self,
        service: ModelService,
        *,
        settings: Settings | None = None,
        stop: tuple[str, ...] = (),
        settings_path: Path | None = None,
        store: SessionStore | None = None,
        chat: Chat | None = None,
        model: str = "",
        personas_path: Path | None = None,
        first: str = "",
        notices: Iterable[str] = (),
    ) -> None:
        super().__init__(driver_class=ForgivingDriver)
        self._inert = InertLines()
        settings = settings or Settings()
        self.preferences = Preferences(settings, settings_path, self._use)
        self.chat = ChatController(
            service,
            settings.answers(stop),
            system=settings.system,
            store=store,
        )
        self.chat.notices.extend(notices)
        if chat is not None:
            self.chat.show_chat(chat)
        self._personas = Personas(personas_path)
        self._model = model or DEFAULT_NAME
        self._first = first
        self._stop = stop
        self._is_asked_for = bool(model)
        self._leaving: int | None = None
        self._pressed_at = Offset()
        self._typing = TypingOrder(self, give=self._give, decides=self._decides)
        self.register_theme(EMBER)
        self.register_theme(EMBER_LIGHT)
        self._use_theme(settings.theme)

    def leave(self, code: int) -> None:
        """End soon with this exit code; for any thread, and for handlers of signals."""
        self._leaving = code
        if self._loop is not None:
            self._loop.call_soon_threadsafe(lambda: self.exit(return_code=code))

    def give_terminal_back(self) -> None:
        """Leave the terminal as it was, where the app hangs and is ended; for any thread."""
        if isinstance(self._driver, ForgivingDriver):
            self._driver.give_back()

    @on(TerminalGone)
    def _terminal_gone(self) -> None:
        self.exit(return_code=exit_code(SIGHUP))

    def on_mount(self) -> None:
        """Begin with the chat and its model, unless the end has come first."""
        if self._leaving is not None:
            self.exit(return_code=self._leaving)
            return
        title.keep_title(self)
        title.set_title(self, "ember")
        offer = ModelOffer(self.chat, self._model)
        screen = ChatScreen(self.chat, offer, self.preferences, self._personas, COMMANDS)
        self.push_screen(screen)
        # A load would keep the first picture, and the first keys, waiting.
        screen.call_after_refresh(self._begin, screen)

    def _begin(self, screen: ChatScreen) -> None:
        """Load the model, if that is wanted or nothing has to be asked; send what was given."""
        if self._is_asked_for or self.chat.service.is_here(self._model):
            self.chat.use(self._model)
        if self._first:
            screen.call_later(screen.send, Draft(text=self._first))

    def on_unmount(self) -> None:
        """Leave the terminal as it was."""
        title.restore_title(self)

    def notify(
        self,
        message: str,
        *,
        title: str = "",
        severity: SeverityLevel = "information",
        timeout: float | None = None,
        markup: bool = True,
    ) -> None:
        """Say it, so that the screen is still seen beside it."""
        seconds = self.NOTIFICATION_TIMEOUT if timeout is None else timeout
        text = fitted(message, self.size)
        self.post_message(Notify(Notice(text, title, severity, seconds, markup)))

    def on_notify(self, event: Notify) -> None:
        """Let older notices go where there is no room for all."""
        make_room(self, event.notification)

    def on_resize(self) -> None:
        """As above, in a terminal that has shrunk."""
        self.call_later(make_room, self)

    def copy_to_clipboard(self, text: str) -> None:
        """Copy what is selected in a field or a dialog."""
        self._clipboard = text  # Textual's own, which a field pastes
        copying.copy(self.screen, text, "the selection")

    def get_css_variables(self) -> dict[str, str]:
        """Textual's variables of the theme, made readable."""
        variables = super().get_css_variables()
        self.theme_variables = readable_variables(variables, is_dark=self.current_theme.dark)
        return self.theme_variables

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Textual's filters, and that nothing foreign commands the terminal."""
        return [*super().get_line_filters(), self._inert]

    async def on_event(self, event: events.Event) -> None:
        """Pass an event on; what is typed goes to the prompt, wherever the user is.

        A button that is let go elsewhere has been dragged, and has clicked on nothing; nor have
        other buttons than the first, which are for the terminal's own menu and paste.
        """
        if isinstance(event, events.Key | events.Paste) and not event.is_forwarded:
            await self._typing.take(event)
            return
        if isinstance(event, events.MouseDown) and not event.is_forwarded:
            self._pressed_at = event.screen_offset
            if isinstance(self._top, Dialog) and self._top.closes_list(event.screen_offset):
                self._mouse_down_widget = None
                return
        elif isinstance(event, events.MouseUp):
            moved = event.screen_offset - self._pressed_at
            if moved.y or abs(moved.x) > _HAND_SHAKES or event.button != _FIRST_BUTTON:
                self._mouse_down_widget = None  # of which Textual makes a click
        if not (isinstance(event, events.MouseDown) and self._hits_what_goes(event)):
            await super().on_event(event)

    async def _give(self, event: events.Key | events.Paste) -> None:
        """Pass on what is typed, whose turn has come."""
        match self._top:
            case Page() as page:
                page.leave(event)
            case TooLongScreen() as asked if asked.passes_on(event):
                return
        if isinstance(self._top, ChatScreen | Dialog):
            self._top.take_keys()
        if isinstance(event, events.Paste) and isinstance(self.focused, Input):
            event = self._for_a_field(event)
        await super().on_event(event)

    def _for_a_field(self, pasted: events.Paste) -> events.Paste:
        """What a line to type into can take, which draws all of it with each letter.

        Textual's takes the first line alone.
        """
        lines = [line for line in pasted.text.splitlines() if line.strip()]
        text = lines[0] if lines else pasted.text.strip("\r\n")
        if len(lines) > 1:
            text = " ".join(line.strip() for line in lines)
            self.notify(f"pasted as one line: there were {len(lines)}", markup=False)
        if len(text) > _MOST_OF_FIELD:
            self.notify(f"pasted in part: the first {_MOST_OF_FIELD} characters", markup=False)
        return events.Paste(text[:_MOST_OF_FIELD])

    @staticmethod
    def _decides(event: events.Key | events.Paste, screen: Screen[Any]) -> bool:
        """Whether it may do more than to add to a text, and not by the prompt's own doing."""
        if isinstance(event, events.Paste) or event.is_printable:
            return isinstance(screen, Dialog) and not isinstance(screen.focused, Input)
        return isinstance(screen, Dialog) or event.key in screen._bindings.key_to_bindings

    @property
    def _top(self) -> Screen[Any] | None:
        """The screen that is seen, if any."""
        return self.screen_stack[-1] if self.screen_stack else None

    def _hits_what_goes(self, event: events.MouseDown) -> bool:
        """Whether it is on a widget that is being taken away, of which Textual 8.2 wants more."""
        try:
            widget, _ = self.screen.get_widget_at(event.x, event.y)
        except NoWidget:
            return False
        return not widget.is_attached

    def _use(self, settings: Settings) -> None:
        """Other settings are in force."""
        self.chat.use_settings(settings.answers(self._stop))
        self.chat.default_system = settings.system
        self._use_theme(settings.theme)

    def _handle_exception(self, error: Exception) -> None:
        # A screen that opens while the user leaves is never given its widgets.
        if not (self._exit and isinstance(error, NoMatches)):
            super()._handle_exception(error)

    def _use_theme(self, name: str) -> None:
        if name in self.available_themes:
            self.theme = name
        else:
            self.chat.notices.append(f"no theme {quoted(name)}: /theme lists them")
