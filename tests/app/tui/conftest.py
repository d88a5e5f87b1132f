"""A chat with a scripted model, on a screen without a terminal."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from textual.pilot import Pilot

from app.tui.app import ChatApp
from app.tui.screens.chat import ChatScreen
from app.tui.scripted_service import ScriptedService
from app.tui.widgets.conversation import Conversation
from app.tui.widgets.prompt import Prompt

_SECONDS = 5.0


class Talk:
    """A running chat, as a test handles it."""

    def __init__(self, app: ChatApp, service: ScriptedService, pilot: Pilot[None]) -> None:
        self.app, self.service, self.pilot = app, service, pilot

    @property
    def screen(self) -> ChatScreen:
        screen = self.app.screen
        assert isinstance(screen, ChatScreen)
        return screen

    @property
    def prompt(self) -> Prompt:
        return self.app.screen_stack[1].query_one(Prompt)

    @property
    def conversation(self) -> Conversation:
        return self.app.screen_stack[1].query_one(Conversation)

    @property
    def shown(self) -> str:
        """All that stands in the conversation."""
        return "\n".join(self.conversation.text_lines)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds."""
        deadline = asyncio.get_running_loop().time() + _SECONDS
        while not holds():
            assert asyncio.get_running_loop().time() < deadline, self.shown
            await self.pilot.pause(0.01)

    async def ask(self, text: str) -> None:
        """Type a question and send it."""
        self.prompt.put(text)
        await self.pilot.press("enter")
        await self.until(lambda: self.service.answering)

    async def answer(self, *pieces: str) -> None:
        """Let the model answer in full."""
        self.service.read(13, 13)
        self.service.say(*pieces)
        self.service.finish()
        await self.until(lambda: not self.app.chat.busy)


@asynccontextmanager
async def talk(
    service: ScriptedService | None = None,
    *,
    size: tuple[int, int] = (120, 36),
    model: str = "scripted",
) -> AsyncIterator[Talk]:
    """A chat that is ready, or as far as its service lets it be."""
    service = service or ScriptedService()
    app = ChatApp(service, model=model)
    async with app.run_test(size=size) as pilot:
        await pilot.pause()
        yield Talk(app, service, pilot)
