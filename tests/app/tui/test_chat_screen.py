"""The chat screen, played by a scripted model."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from app.sessions.chat import State
from app.tui.scripted_service import ScriptedService, layer_stats
from app.tui.widgets.cache_pane import CachePane
from tests.app.tui.conftest import talk


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(coroutine)


def test_an_answer_streams_and_is_kept() -> None:
    async def scenario() -> None:
        async with talk() as chat:
            await chat.ask("why is the sky blue?")
            chat.service.read(13, 13)
            chat.service.say("Because", " of", " **scattering**")
            await chat.until(lambda: "Because of scattering▍" in chat.shown)
            chat.service.say(".")
            chat.service.finish()
            await chat.until(lambda: "42.0 tok/s" in chat.shown)
            assert "Because of scattering." in chat.shown
            (ask,) = chat.service.asks
            assert [message.content for message in ask.messages] == ["why is the sky blue?"]

    run(scenario())


def test_escape_keeps_what_was_said() -> None:
    async def scenario() -> None:
        async with talk() as chat:
            await chat.ask("count")
            chat.service.read(5, 5)
            chat.service.say("one", " two")
            await chat.until(lambda: "one two" in chat.shown)
            await chat.pilot.press("escape")
            await chat.until(lambda: not chat.app.chat.busy)
            assert chat.app.chat.chat.messages[-1].state is State.STOPPED
            assert "one two" in chat.shown
            assert "stopped" in chat.shown

    run(scenario())


def test_a_question_typed_during_the_load_waits_for_it() -> None:
    async def scenario() -> None:
        async with talk(ScriptedService(holds_load=True)) as chat:
            chat.prompt.put("hello")
            await chat.pilot.press("enter")
            await chat.pilot.pause(0.1)
            assert chat.service.asks == []
            chat.service.finish_load()
            await chat.until(lambda: len(chat.service.asks) == 1)

    run(scenario())


def test_the_cache_pane_shows_the_stats() -> None:
    async def scenario() -> None:
        async with talk() as chat:
            chat.service.stats = layer_stats(sink=4, hot=256, cold=512, evicted=64)
            pane = chat.app.screen.query_one(CachePane)
            await chat.until(lambda: "512 tok" in pane.render().plain)
            text = pane.render().plain
            assert "4.5b" in text
            assert "gone     64 tok" in text
            assert "ratio 1.91x  window full" in text

    run(scenario())
