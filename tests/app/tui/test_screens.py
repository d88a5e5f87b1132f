"""The screens beside the chat and its panes, opened and worked by keys."""

import asyncio

import pytest
from textual import events
from textual.selection import SELECT_ALL
from textual.widgets import Input, Static

from app.chat.speed_meter import Speed
from app.chat.terms import glossary
from app.events import Drafts
from app.sessions.store import SessionStore
from app.tui.commands import COMMANDS
from app.tui.screens.chat import ChatScreen
from app.tui.screens.dialog import Dialog
from app.tui.screens.figures import CacheScreen, SpeedScreen
from app.tui.screens.help import HelpScreen
from app.tui.screens.search import SearchScreen
from app.tui.widgets.columns import Columns
from app.tui.widgets.layer_map import LayerMap
from app.tui.widgets.pane import Pane
from app.tui.widgets.speed_pane import SpeedPane
from tests.app.service.scripted_service import ScriptedService, layer_stats
from tests.app.tui.conftest import (
    click_beyond_the_screen,
    on_screen,
    talk,
)
from tests.app.tui.test_sizes import drawn


@on_screen
async def test_a_title_can_be_changed() -> None:
    store = SessionStore.in_memory()
    async with talk(store=store) as chat:
        await chat.type("/title too early")
        await chat.until(lambda: "is empty" in chat.told)
        await chat.exchange("one", "1")
        await chat.type("/title [b]new[/b]")
        await chat.until(lambda: store.chats()[0].title == "[b]new[/b]")


@on_screen
async def test_help_and_figures_open_and_close() -> None:
    async with talk() as chat:
        await chat.exchange("one", "first answer")
        await chat.exchange("two", "second answer")
        for key, screen in (("f1", HelpScreen), ("f3", SpeedScreen), ("f4", CacheScreen)):
            await chat.press(key)
            await chat.pilot.pause(0.3)
            assert isinstance(chat.app.screen, screen)
            await chat.press("escape")
            assert len(chat.app.screen_stack) == 2


@on_screen
@pytest.mark.parametrize("key", ["ctrl+o", "ctrl+p", "ctrl+l", "f1", "f2", "f3", "f4"])
@pytest.mark.parametrize("close", ["escape", "ctrl+c"])
async def test_every_screen_is_closed_by(key: str, close: str) -> None:
    async with talk() as chat:
        await chat.press(key)
        assert isinstance(chat.app.screen, Dialog)
        await chat.press(close)
        assert isinstance(chat.app.screen, ChatScreen)


@on_screen
@pytest.mark.parametrize("key", ["f1", "f3", "f4"])
async def test_ctrl_c_copies_what_is_selected_in_a_screen_then_closes_it(
    key: str, copied: list[str]
) -> None:
    async with talk() as chat:
        await chat.press(key)
        screen = chat.app.screen

        def is_selected() -> bool:
            screen.selections = dict.fromkeys(screen.query("*"), SELECT_ALL)
            return bool(screen.get_selected_text())

        await chat.until(is_selected)
        await chat.press("ctrl+c")
        await chat.until(lambda: "the selection" in chat.told)
        words = {"f1": "send prefill evicted /export", "f3": "tok/s", "f4": "evicted codec"}
        assert [each for each in words[key].split() if each not in copied[0]] == []
        assert chat.app.screen is screen
        await chat.press("ctrl+c")
        assert isinstance(chat.app.screen, ChatScreen)


@on_screen
async def test_leaving_while_a_screen_opens_is_no_error() -> None:
    async with talk() as chat:
        chat.app.push_screen(HelpScreen(COMMANDS, chat.app.chat))
        chat.app.exit()
    assert chat.app.return_code == 0


@on_screen
async def test_panes_are_toggled_and_need_room() -> None:
    async with talk() as chat:
        await chat.press("f5")
        assert chat.screen.has_class("panes-off")
        await chat.press("f5")
        assert not chat.screen.has_class("panes-off")
        await chat.pilot.resize_terminal(80, 24)
        await chat.press("f5")
        await chat.until(lambda: "100 columns" in chat.told)


@on_screen
async def test_the_backend_and_why_it_is_that_one_are_shown() -> None:
    service = ScriptedService(notes=["no C++ compiler was found: install one"])
    async with talk(service) as chat:
        pane = chat.screen.query_one(SpeedPane)
        await chat.until(lambda: "scripted" in str(pane.border_title))
        await chat.until(lambda: "1 to know" in str(pane.query_one(Pane).render()))
        await chat.press("f3")
        page = chat.app.screen.query_one(Static)
        await chat.until(lambda: "! no C++ compiler" in str(page.render()))


@on_screen
async def test_accepted_drafts_are_shown_where_there_were_any() -> None:
    async with talk() as chat:
        speed = chat.screen.query_one(SpeedPane)
        pane = speed.query_one(Pane)
        speed.show(None, Speed(), None, None, Drafts())
        assert "drafts" not in str(pane.render())
        speed.show(None, Speed(), None, None, Drafts(tried=40, accepted=33, tokens=55))
        assert "drafts 82% taken  2.5 tok/step" in str(pane.render())


@on_screen
async def test_a_field_keeps_the_keys_after_a_click_beyond_a_screen_that_has_shrunk() -> None:
    async with talk() as chat:
        await chat.press("ctrl+p", *"ab")
        dialog = chat.app.screen
        chat.app.post_message(click_beyond_the_screen())
        await chat.until(lambda: dialog.focused is None)
        await chat.press("backspace", "c")
        assert dialog.query_one(Input).value == "ac"


@on_screen
@pytest.mark.parametrize("key", ["ctrl+o", "ctrl+p"])
async def test_keys_faster_than_a_screen_goes_do_not_take_the_chat_away(key: str) -> None:
    async with talk() as chat:
        await chat.exchange("one", "first answer")
        await chat.press(key)
        dialog = chat.app.screen
        assert isinstance(dialog, SearchScreen)
        chosen = dialog.chosen
        for _ in range(3):
            dialog.dismiss(dialog.result(chosen))
        await chat.pilot.pause(0.1)
        assert isinstance(chat.app.screen, ChatScreen)
        assert len(chat.app.screen_stack) == 2


@pytest.mark.parametrize(
    ("command", "key", "left"),
    [
        ("/model", "escape", 2),
        ("/sessions", "f2", 3),
        ("/sessions", "down", 3),
        ("/set", "ctrl+s", 2),
        ("/help", "escape", 2),
        ("/stats", "f3", 2),
        ("/kv", "escape", 2),
    ],
)
@on_screen
async def test_a_key_that_is_faster_than_a_screen_waits_for_it(
    command: str, key: str, left: int
) -> None:
    """left: the screens that stay."""
    async with talk() as chat:
        chat.prompt.put(command)
        await chat.pilot.pause()
        for each in ("enter", key):
            chat.app.post_message(events.Key(each, None))
        await chat.until(lambda: not chat.prompt.text)
        await chat.pilot.pause(0.5)
        assert len(chat.app.screen_stack) == left


@pytest.mark.parametrize("screen", [SpeedScreen, CacheScreen])
@on_screen
async def test_figures_that_are_closed_at_once_are_not_drawn(
    screen: type[SpeedScreen | CacheScreen],
) -> None:
    async with talk() as chat:
        opened = (
            SpeedScreen(chat.app.chat)
            if screen is SpeedScreen
            else CacheScreen(chat.app.chat, chat.screen.gauges.tier_log)
        )
        chat.app.push_screen(opened)
        while not opened.is_mounted:
            await asyncio.sleep(0)
        opened.dismiss()
        chat.screen.refresh(layout=True)
        await chat.pilot.pause(0.5)
        assert chat.app.screen is chat.screen


@pytest.mark.parametrize("key", ["f1", "f4"])
@on_screen
async def test_words_stand_with_their_values_and_meanings(key: str) -> None:
    async with talk() as chat:
        await chat.exchange("one", "first answer")
        chat.service.stats = layer_stats(sink=4, hot=256, cold=512, evicted=64)
        await chat.press(key)
        words = next(w for w in chat.app.screen.query(Columns) if w.border_title == "Words")
        await chat.until(lambda: "512 tok" in drawn(words))
        # Beside each other, however the meanings wrap.
        shown = " ".join(drawn(words).split())
        for word, value in (
            *(("sink", "4 tok"), ("hot", "256 tok"), ("cold", "512 tok"), ("evicted", "64 tok")),
            *(("codec", "f16"), ("prefill", "1284/s"), ("TTFT", "0.38 s"), ("ratio", "1.91x")),
        ):
            assert f"{word} {value} " in shown
        for term in glossary(chat.app.chat):
            assert term.meaning.endswith(".")
            assert ". " not in term.meaning


@on_screen
async def test_words_have_no_values_before_there_is_a_model() -> None:
    async with talk(ScriptedService(holds_load=True)) as chat:
        assert {term.value for term in glossary(chat.app.chat)} == {"–"}


@on_screen
async def test_the_cache_page_has_a_row_for_every_layer() -> None:
    async with talk() as chat:
        chat.service.stats = layer_stats(hot=300, layers=7)
        await chat.press("f4")
        layers = chat.app.screen.query_one(LayerMap)
        await chat.until(lambda: "06" in layers.render().plain)
        rows = layers.render().plain.split("\n")
        assert [row[:2] for row in rows] == [f"{layer:02}" for layer in range(7)]


@pytest.mark.parametrize("key", ["", "f1", "f2", "f3", "f4", "ctrl+l", "ctrl+o", "ctrl+p"])
@on_screen
async def test_timers_of_a_screen_whose_widgets_are_going_raise_nothing(key: str) -> None:
    async with talk() as chat:
        await chat.exchange("one", "first answer")
        if key:
            await chat.press(key)
        chat.prompt.put("typed")
        await chat.app.screen.remove_children()
        for timer in list(chat.app.screen._timers):
            timer.reset()
        await chat.pilot.pause(0.6)
        assert chat.app.is_running
