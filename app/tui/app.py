"""The full-screen chat as a program."""

from pathlib import Path
from typing import ClassVar

from textual.app import App

from app.tui.controller import AnswerSettings, ChatController
from app.tui.screens.chat import ChatScreen
from app.tui.service import ModelService


class ChatApp(App[None]):
    """Owns the controller and the screens; the service is its maker's to close."""

    CSS_PATH = Path(__file__).parent / "ember.tcss"
    TITLE = "ember"
    ENABLE_COMMAND_PALETTE: ClassVar[bool] = True

    def __init__(
        self, service: ModelService, *, model: str, settings: AnswerSettings, system: str = ""
    ) -> None:
        super().__init__()
        self.chat = ChatController(service, settings, system=system)
        self._service, self._model = service, model

    def on_mount(self) -> None:
        """Begin with the chat and its model."""
        self.push_screen(ChatScreen(self.chat, self._service))
        self.chat.load(self._model)
