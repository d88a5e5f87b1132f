"""What is asked about a question that the window cannot hold."""

import pytest
from textual import events

from app.service.contract import TooLong
from app.tui.screens.too_long import TooLongScreen
from tests.app.tui.conftest import Talk, on_screen, talk


def refuse(chat: Talk) -> None:
    """What the model's side says of the question that it was asked."""
    chat.service.put(TooLong(prompt_tokens=1200, window=1000))
    chat.service.end()


async def decide(chat: Talk, *keys: str) -> None:
    await chat.until(lambda: isinstance(chat.app.screen, TooLongScreen))
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
