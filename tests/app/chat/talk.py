"""A controller that is talked with, and its scripted model."""

from typing import Any

from app.chat.controller import ChatController
from app.chat.state import Draft
from app.sessions.store import SessionStore
from tests.app.service.scripted_service import ScriptedService


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Talk:
    """A controller with its scripted model."""

    def __init__(self, store: SessionStore | None = None, **service: Any) -> None:
        self.clock = Clock()
        self.service = ScriptedService(**service)
        self.chat = ChatController(self.service, store=store, clock=self.clock)
        self.chat.load("m")
        self.chat.tick()

    def ask(self, text: str) -> None:
        self.chat.ask(Draft(text=text))
        self.chat.tick()

    def exchange(self, question: str, answer: str) -> None:
        self.ask(question)
        self.service.read(10, 10)
        self.service.say(answer)
        self.service.finish()
        self.chat.tick()

    @property
    def texts(self) -> list[str]:
        return [message.text for message in self.chat.chat.messages]

    @property
    def asked(self) -> list[str]:
        return [message.content for message in self.service.asks[-1].messages]
