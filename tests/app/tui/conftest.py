"""A chat with a scripted model, on a screen without a terminal."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from textual import events
from textual.pilot import Pilot
from textual.widget import Widget
from textual.widgets import Input, OptionList

from app.chat.settings import Settings
from app.sessions.store import SessionStore
from app.tui.app import ChatApp
from app.tui.screens.chat import ChatScreen
from app.tui.terminal import clipboard
from app.tui.widgets.conversation import Conversation
from app.tui.widgets.prompt import Prompt
from tests.app.service.scripted_service import ScriptedService
from tests.patience import patience

_SECONDS = 10.0
Scenario = Callable[..., Coroutine[Any, Any, None]]


def on_screen(scenario: Scenario) -> Callable[..., None]:
    """A test that is a coroutine."""

    @wraps(scenario)
    def test(*arguments: Any, **named: Any) -> None:
        asyncio.run(_without_lost_errors(scenario(*arguments, **named)))

    return test


async def _without_lost_errors(scenario: Coroutine[Any, Any, None]) -> None:
    """Run it; fail for what a task raised and nobody took, which Python only logs."""
    tasks = list[asyncio.Task[Any]]()

    def remember(
        loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **named: Any
    ) -> asyncio.Task[Any]:
        tasks.append(asyncio.Task(coroutine, loop=loop, **named))
        return tasks[-1]

    asyncio.get_running_loop().set_task_factory(remember)
    await scenario
    lost = [task.exception() for task in tasks if getattr(task, "_log_traceback", False)]
    assert not lost


class Talk:
    """A running chat, as a test handles it."""

    def __init__(
        self,
        app: ChatApp,
        service: ScriptedService,
        pilot: Pilot[None],
        told: Sequence[str] = (),
    ) -> None:
        self.app, self.service, self.pilot = app, service, pilot
        self._told = told

    @property
    def screen(self) -> ChatScreen:
        screen = self.app.screen_stack[1]
        assert isinstance(screen, ChatScreen)
        return screen

    @property
    def prompt(self) -> Prompt:
        return self.screen.composer.prompt

    @property
    def conversation(self) -> Conversation:
        return self.screen.conversation

    @property
    def shown(self) -> str:
        """All that stands in the conversation."""
        return "\n".join(self.conversation.text_lines)

    @property
    def texts(self) -> list[str]:
        return [message.text for message in self.app.chat.chat.messages]

    @property
    def told(self) -> str:
        """The notices that there were."""
        return "\n".join(self._told)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds."""
        deadline = asyncio.get_running_loop().time() + patience(_SECONDS)
        while not holds():
            assert asyncio.get_running_loop().time() < deadline, f"{self.shown}\n{self.told}"
            await self.pilot.pause(0.01)

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def type(self, text: str) -> None:
        """Put a text into the prompt and send it."""
        self.prompt.put(text)
        await self.pilot.pause()
        await self.press("enter")

    async def ask(self, text: str) -> None:
        """Send a question and wait until the model has it."""
        await self.type(text)
        await self.until(lambda: self.service.answering)

    async def exchange(self, question: str, *pieces: str) -> None:
        """A question, and the model's answer in full."""
        await self.ask(question)
        self.service.read(13, 13)
        self.service.say(*pieces)
        self.service.finish()
        await self.settled()

    async def settled(self) -> None:
        """Wait until the answer that was finished is shown."""
        await self.until(lambda: not self.app.chat.busy)
        await self.pilot.pause(0.06)

    async def choose(self, at: int) -> None:
        """Take a line of the list that is open."""
        await self.until(
            lambda: any(each.option_count > at for each in self.app.screen.query(OptionList))
        )
        chooser = self.app.screen.query_one(OptionList)
        chooser.highlighted = at
        chooser.action_select()
        await self.pilot.pause()

    async def fill(self, text: str) -> None:
        """Type into the field that is open."""
        self.app.screen.query_one(Input).value = text
        await self.pilot.pause()


@asynccontextmanager
async def talk(
    service: ScriptedService | None = None,
    *,
    size: tuple[int, int] = (120, 36),
    model: str = "scripted",
    settings: Settings | None = None,
    settings_path: Path | None = None,
    personas_path: Path | None = None,
    first: str = "",
    store: SessionStore | None = None,
) -> AsyncIterator[Talk]:
    """A chat that is ready, or as far as its service lets it be."""
    service = service or ScriptedService()
    app = ChatApp(
        service,
        model=model,
        settings=settings,
        settings_path=settings_path,
        personas_path=personas_path,
        first=first,
        store=store,
    )
    told = _told_by(app)
    async with app.run_test(size=size, notifications=True) as pilot:
        await pilot.pause(0.1)
        yield Talk(app, service, pilot, told)


def _told_by(app: ChatApp) -> list[str]:
    """All notices from here on: one may be gone before a busy machine lets a test look."""
    told, notify = list[str](), app.notify

    def noting(message: str, **named: Any) -> None:
        told.append(message)
        notify(message, **named)

    app.notify = noting  # type: ignore[method-assign]
    return told


def mouse_down(x: int, y: int, button: int = 1) -> events.MouseDown:
    """As the terminal tells it."""
    return events.MouseDown(None, **_button(x, y, button))


def mouse_up(x: int, y: int, button: int = 1) -> events.MouseUp:
    """Let go there."""
    return events.MouseUp(None, **_button(x, y, button))


def _button(x: int, y: int, button: int) -> dict[str, Any]:
    at = {"x": x, "y": y, "screen_x": x, "screen_y": y, "delta_x": 0, "delta_y": 0}
    return {**at, "button": button, "shift": False, "meta": False, "ctrl": False}


def click_beyond_the_screen() -> events.MouseDown:
    """Where the terminal still was when it was clicked."""
    return mouse_down(200, 99)


def listed(chat: Talk) -> list[str]:
    """The lines of the list that is open."""
    return [str(each.prompt) for each in chat.app.screen.query_one(OptionList).options]


def post_keys(chat: Talk, *keys: str) -> None:
    """All at once, as a slow line delivers them."""
    for key in keys:
        chat.app.post_message(events.Key(key, key if len(key) == 1 else None))


def click(chat: Talk, widget: Widget, button: int = 1) -> None:
    """On its first line."""
    at = widget.region.offset
    chat.app.post_message(mouse_down(at.x + 4, at.y, button))
    chat.app.post_message(mouse_up(at.x + 4, at.y, button))


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has been copied to the clipboard."""
    texts: list[str] = []

    def copy(text: str, _by_terminal: Callable[[str], None]) -> clipboard.Copied:
        texts.append(text)
        return clipboard.Copied.CLIPBOARD

    monkeypatch.setattr(clipboard, "copy", copy)
    return texts


@pytest.fixture(autouse=True)
def no_models(home: Path) -> None:
    """No test looks at the models of this machine."""
