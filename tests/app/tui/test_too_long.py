"""What is asked about a question that the window cannot hold."""

import asyncio
import math
from collections.abc import Callable

import pytest
from textual import events

from app.chat.state import Draft
from app.service.contract import TooLong
from app.tui.screens.too_long import TooLongScreen
from tests.app.tui.conftest import Talk, on_screen, talk


def refuse(chat: Talk) -> None:
    """What the model's side says of the question that it was asked."""
    chat.service.put(TooLong(prompt_tokens=1200, window=1000))
    chat.service.end()


def is_seen(chat: Talk) -> bool:
    """Whether the dialog has been drawn."""
    screen = chat.app.screen
    return isinstance(screen, TooLongScreen) and screen.seen_since < math.inf


async def decide(chat: Talk, *keys: str) -> None:
    await chat.until(lambda: is_seen(chat))
    await chat.until(lambda: chat.app.screen.focused is not None)
    # Posted, as the pilot would wait for widgets of a screen that the last key closes.
    for key in keys:
        chat.app.post_message(events.Key(key, None))
    await chat.until(lambda: chat.app.screen is chat.screen)


@on_screen
async def test_no_dialog_takes_the_keys_of_who_types(monkeypatch: pytest.MonkeyPatch) -> None:
    async with talk() as chat:
        monkeypatch.setattr("app.tui.widgets.prompt._REST_SECONDS", 1e6)
        await chat.ask("long")
        refuse(chat)
        await chat.until(lambda: chat.app.chat.too_long is not None)
        await chat.type("next")
        await chat.until(lambda: chat.app.chat.queued is not None)
        assert chat.app.screen is chat.screen
        monkeypatch.setattr("app.tui.widgets.prompt._REST_SECONDS", 0.0)
        await decide(chat, "enter")
        await chat.until(lambda: chat.service.answering)
        assert chat.service.asks[-1].cuts
        chat.service.finish()
        await chat.until(lambda: chat.texts[-2] == "next")


@on_screen
@pytest.mark.parametrize(
    "is_there",
    [lambda chat: isinstance(chat.app.screen, TooLongScreen), is_seen],
    ids=["opened", "drawn"],
)
async def test_a_key_from_before_the_dialog_was_seen_is_for_the_prompt(
    is_there: Callable[[Talk], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with talk() as chat:
        await chat.ask("long")
        chat.prompt.put("next")
        early = [events.Key("!", "!"), events.Key("enter", None)]
        await chat.pilot.pause(0.01)
        monkeypatch.setattr("app.tui.widgets.prompt._REST_SECONDS", 0.0)
        refuse(chat)
        while not is_there(chat):
            await asyncio.sleep(0)
        for each in early:
            chat.app.post_message(each)
        await chat.until(lambda: chat.app.chat.queued == Draft(text="next!"))
        await decide(chat, "escape")
        await chat.until(lambda: chat.texts == ["long", "next!", ""])


@on_screen
async def test_it_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tick may come between the end of the dialog and what that decides."""
    monkeypatch.setattr("app.tui.widgets.prompt._REST_SECONDS", 0.0)
    async with talk() as chat:
        for question in ("long", "as long"):
            await chat.ask(question)
            refuse(chat)
            await chat.until(lambda: is_seen(chat))
            dialog = chat.app.screen
            assert isinstance(dialog, TooLongScreen)
            dialog.dismiss(None)
            chat.screen._tick()
            assert chat.app.screen is chat.screen
            await chat.until(lambda: chat.app.chat.too_long is None)


@on_screen
@pytest.mark.parametrize("keys", [("escape",), ("down", "enter")], ids=["neither", "undo"])
async def test_what_waits_is_asked_once_that_is_decided(
    keys: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.tui.widgets.prompt._REST_SECONDS", 0.0)
    async with talk() as chat:
        await chat.ask("long")
        await chat.type("next")
        await chat.until(lambda: chat.app.chat.queued is not None)
        refuse(chat)
        await decide(chat, *keys)
        await chat.until(lambda: chat.service.answering)
        is_back = keys[-1] == "enter"
        assert chat.texts == [*([] if is_back else ["long"]), "next", ""]
        assert chat.prompt.text == ("long" if is_back else "")
