"""The full-screen chat as a program."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from signal import SIGHUP
from typing import Any

from textual import on
from textual.app import App
from textual.css.query import NoMatches
from textual.filter import LineFilter

from app.interrupt import exit_code
from app.sessions.chat import Chat
from app.sessions.store import SessionStore
from app.tui import settings as settings_file
from app.tui import terminal
from app.tui.controller import ChatController
from app.tui.driver import ForgivingDriver, TerminalGone
from app.tui.inert_lines import InertLines
from app.tui.model_offer import ModelOffer
from app.tui.screens.chat import ChatScreen
from app.tui.service import ModelService
from app.tui.settings import Settings
from app.tui.state import AnswerSettings
from app.tui.theme import EMBER, EMBER_LIGHT
from models.catalogue import DEFAULT_NAME


class ChatApp(App[None]):
    """Owns the controller, the settings and the screens.

    The service and the store are their maker's to close. settings: those in
    force, flags included. settings_path: where those that the user changes are
    kept, None for nowhere. chat: a saved chat to go on with.
    model: what to load; empty for the default, which is offered before it is fetched.
    """

    CSS_PATH = Path(__file__).parent / "ember.tcss"
    TITLE = "ember"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (84, "-wide")]  # noqa: RUF012
    ENABLE_COMMAND_PALETTE = False

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
        notices: Iterable[str] = (),
    ) -> None:
        super().__init__(driver_class=ForgivingDriver)
        self._inert = InertLines()
        self.settings = settings or Settings()
        self.chat = ChatController(
            service,
            _answer_settings(self.settings, stop),
            system=self.settings.system,
            store=store,
        )
        self.chat.notices.extend(notices)
        if chat is not None:
            self.chat.show_chat(chat)
        self._model = model or DEFAULT_NAME
        self._service, self._stop, self._settings_path = service, stop, settings_path
        self._is_asked_for = bool(model)
        self._unsaved: dict[str, Any] = {}
        self._leaving: int | None = None
        self.register_theme(EMBER)
        self.register_theme(EMBER_LIGHT)
        self._use_theme(self.settings.theme)

    def leave(self, code: int) -> None:
        """End soon with this exit code; for any thread, and for handlers of signals."""
        self._leaving = code
        if self._loop is not None:
            self._loop.call_soon_threadsafe(lambda: self.exit(return_code=code))

    @on(TerminalGone)
    def _terminal_gone(self) -> None:
        self.exit(return_code=exit_code(SIGHUP))

    def on_mount(self) -> None:
        """Begin with the chat and its model, unless the end has come first."""
        if self._leaving is not None:
            self.exit(return_code=self._leaving)
            return
        terminal.keep_title(self)
        terminal.set_title(self, "ember")
        offer = ModelOffer(self.chat, self._model)
        self.push_screen(ChatScreen(self.chat, self._service, offer))
        if self._is_asked_for or self.chat.is_here(self._model):
            self.chat.use(self._model)

    def on_unmount(self) -> None:
        """Leave the terminal as it was."""
        terminal.restore_title(self)

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Textual's filters, and that nothing foreign commands the terminal."""
        return [*super().get_line_filters(), self._inert]

    def change_settings(self, settings: Settings, *named: str) -> None:
        """Use other settings, and keep what differs from the present ones, or is named.

        Flags of this run are in force, and so are not to be kept. Raises EmberError
        where the settings cannot be saved.
        """
        now = asdict(self.settings)
        self._unsaved |= {
            name: value
            for name, value in asdict(settings).items()
            if value != now[name] or name in named
        }
        self.settings = settings
        self.chat.settings = _answer_settings(settings, self._stop)
        self.chat.default_system = settings.system
        self._use_theme(settings.theme)
        if self._settings_path is not None and self._unsaved:
            self.chat.notices += settings_file.change(self._settings_path, self._unsaved)
            self._unsaved.clear()

    def _handle_exception(self, error: Exception) -> None:
        # A screen that opens while the user leaves is never given its widgets.
        if not (self._exit and isinstance(error, NoMatches)):
            super()._handle_exception(error)

    def _use_theme(self, name: str) -> None:
        if name in self.available_themes:
            self.theme = name
        else:
            self.chat.notices.append(f"no theme {name!r}: /theme lists them")


def _answer_settings(settings: Settings, stop: tuple[str, ...]) -> AnswerSettings:
    return AnswerSettings(sampling=settings.sampling(), max_tokens=settings.max_tokens, stop=stop)
