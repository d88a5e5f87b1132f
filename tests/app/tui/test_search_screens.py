"""Lists that typing narrows: chats, commands."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from rich.style import Style
from textual import events
from textual.widgets import Input, OptionList

from app.sessions.store import SessionStore
from app.tui.commands import COMMANDS
from app.tui.screens.chat import ChatScreen
from app.tui.screens.chats import ChatsScreen
from app.tui.screens.help import HelpScreen
from app.tui.screens.search import SearchScreen
from tests.app.tui.conftest import (
    click,
    listed,
    mouse_down,
    mouse_up,
    on_screen,
    post_keys,
    talk,
)


@on_screen
async def test_chats_are_searched_opened_renamed_and_deleted() -> None:
    store = SessionStore.in_memory()
    async with talk(store=store) as chat:
        await chat.exchange("about cats", "meow")
        await chat.type("/new")
        await chat.exchange("about dogs", "woof")
        await chat.press("ctrl+o")
        assert isinstance(chat.app.screen, ChatsScreen)
        assert chat.app.screen.query_one(OptionList).option_count == 2
        await chat.fill("meow")
        await chat.until(lambda: chat.app.screen.query_one(OptionList).option_count == 1)
        await chat.press("f2")
        await chat.fill("felines")
        await chat.press("enter")
        await chat.pilot.pause()
        assert [each.title for each in store.chats("meow")] == ["felines"]
        await chat.press("enter")
        await chat.until(lambda: chat.texts == ["about cats", "meow"])
        await chat.press("ctrl+o", "f8")
        await chat.choose(1)
        await chat.until(lambda: [each.title for each in store.chats()] == ["felines"])
        await chat.press("f8")
        await chat.until(lambda: "this chat is open" in chat.told)


@on_screen
async def test_chats_that_cannot_be_changed_are_told(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    store = SessionStore.open(path)
    async with talk(store=store) as chat:
        await chat.exchange("about cats", "meow")
        await chat.type("/new")
        await chat.press("ctrl+o")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await chat.press("f2")
            await chat.fill("felines")
            await chat.press("enter")
            await chat.until(
                lambda: "cannot rename the chats: another program has locked" in chat.told
            )
            await chat.press("f8")
            await chat.choose(1)
            await chat.until(
                lambda: "cannot delete the chats: another program has locked" in chat.told
            )
        assert [each.title for each in store.chats()] == ["about cats"]


@on_screen
async def test_a_click_takes_what_was_shown_though_typing_has_changed_the_list() -> None:
    async with talk() as chat:
        await chat.press("ctrl+p", *"theme")
        screen = chat.app.screen
        assert isinstance(screen, SearchScreen)
        chooser = screen.query_one(OptionList)
        chooser.highlighted = chooser.option_count - 1
        chooser.action_select()
        screen.query_one(Input).value = "theme nord"
        screen.refresh_list()
        await chat.until(lambda: chat.app.theme == "tokyo-night")


@on_screen
@pytest.mark.parametrize(
    ("columns", "rows", "chooses"),
    [(0, 0, True), (2, 0, True), (3, 0, False), (0, 1, False), (0, -1, False)],
)
async def test_a_drag_over_a_list_chooses_nothing(columns: int, rows: int, chooses: bool) -> None:
    async with talk() as chat:
        before = chat.app.theme
        await chat.press("ctrl+p", *"theme")
        await chat.until(lambda: chat.app.screen.query_one(OptionList).option_count > 5)
        await chat.pilot.pause(0.1)
        x, y, *_ = chat.app.screen.query_one(OptionList).content_region
        chat.app.post_message(mouse_down(x + 5, y + 3))
        chat.app.post_message(mouse_up(x + 5 + columns, y + 3 + rows))
        if not chooses:
            await chat.pilot.pause(0.2)
            assert isinstance(chat.app.screen, SearchScreen)
        await chat.until(lambda: (chat.app.theme != before) is chooses)


@on_screen
async def test_a_click_on_a_line_that_has_gone_since_takes_nothing() -> None:
    async with talk() as chat:
        await chat.press("ctrl+p", *"theme")
        screen = chat.app.screen
        assert isinstance(screen, SearchScreen)
        chooser = screen.query_one(OptionList)
        at_first, last = click_on(chooser, 0), click_on(chooser, chooser.option_count - 1)
        screen.query_one(Input).value = "theme nord"
        screen.refresh_list()
        for click in (at_first, last, click_on(chooser, chooser.option_count)):
            chooser.post_message(click)
        await chat.pilot.pause(0.05)
        assert chat.app.screen is screen
        chooser.post_message(click_on(chooser, 0))
        await chat.until(lambda: chat.app.theme == "nord")


def click_on(chooser: OptionList, line: int) -> events.Click:
    """What Textual makes of a click on a line, as it was drawn last."""
    style = Style.from_meta({"option": line})
    return events.Click(chooser, 0, line, 0, 0, 1, False, False, False, style=style)


@on_screen
async def test_the_palette_runs_commands() -> None:
    async with talk() as chat:
        await chat.press("ctrl+p", *"help", "enter")
        await chat.until(lambda: isinstance(chat.app.screen, HelpScreen))
        await chat.press("escape", "ctrl+p", *"theme nord", "enter")
        await chat.until(lambda: chat.app.theme == "nord")


@on_screen
async def test_the_palette_lists_what_can_be_run_alone() -> None:
    async with talk() as chat:
        await chat.press("ctrl+p")
        shown = chat.app.screen.query_one(OptionList)
        alone = [each.name for each in COMMANDS if not each.usage or each.usage.startswith("[")]
        assert shown.option_count == len(alone) + len(chat.app.available_themes)
        await chat.press(*"not one of them")
        await chat.until(lambda: listed(chat) == ["nothing found"])
        await chat.press("enter", "escape")
        assert isinstance(chat.app.screen, ChatScreen)


@on_screen
async def test_keys_that_come_all_at_once_keep_their_order_in_a_field() -> None:
    async with talk() as chat:
        await chat.press("ctrl+p")
        field = chat.app.screen.query_one(Input)
        for key in ("a", "backspace", "b", "ctrl+u", "c", "left", "d", "home", "e"):
            chat.app.post_message(events.Key(key, key if len(key) == 1 else None))
        await chat.until(lambda: "e" in field.value)
        assert field.value == "edc"
        await chat.press("ctrl+c")
        assert isinstance(chat.app.screen, ChatScreen)


@on_screen
@pytest.mark.parametrize("below", [0, 2])
async def test_what_is_chosen_in_a_burst_is_what_those_keys_choose(below: int) -> None:
    async with talk() as chat:
        await chat.press("ctrl+p", *"theme")
        await chat.until(lambda: "/theme" in listed(chat)[0])
        wanted = listed(chat)[1 + below].split()[1]
        await chat.press("escape")
        post_keys(chat, "ctrl+p", *"theme", *["down"] * (1 + below), "enter", *"next")
        await chat.until(lambda: chat.prompt.text == "next")
        assert chat.app.theme == wanted


@on_screen
@pytest.mark.parametrize("button", [2, 3])
async def test_other_buttons_than_the_first_choose_nothing(button: int) -> None:
    async with talk() as chat:
        await chat.exchange("why?", "so")
        click(chat, chat.conversation, button)
        await chat.pilot.pause(0.1)
        assert chat.conversation.selected is None
        await chat.press("ctrl+p")
        await chat.until(lambda: len(listed(chat)) > 3)
        palette = chat.app.screen
        click(chat, palette.query_one(OptionList), button)
        await chat.pilot.pause(0.1)
        assert chat.app.screen is palette
        click(chat, palette.query_one(OptionList))
        await chat.until(lambda: chat.app.screen is not palette)


@on_screen
async def test_a_long_paste_into_a_field_is_cut_and_said_so() -> None:
    async with talk() as chat:
        await chat.exchange("why?", "so")
        await chat.press("ctrl+o")
        await chat.until(lambda: len(listed(chat)) == 1)
        chat.app.post_message(events.Paste("x" * 100_000))
        await chat.until(lambda: listed(chat) == ["nothing found"])
        assert chat.app.screen.query_one(Input).value == "x" * 4000
        await chat.until(lambda: "the first 4000 characters" in chat.told)


@on_screen
async def test_the_ends_of_a_list_are_reached_by_home_and_end() -> None:
    async with talk() as chat:
        await chat.press("ctrl+p")
        chooser = chat.app.screen.query_one(OptionList)
        await chat.until(lambda: chooser.option_count > 3)
        await chat.press("end")
        assert chooser.highlighted == chooser.option_count - 1
        await chat.press("home")
        assert chooser.highlighted == 0
        # In a text they are for the text.
        await chat.press("e", "home", "h", "end", "l")
        assert chat.app.screen.query_one(Input).value == "hel"


@on_screen
async def test_a_list_of_nothing_says_so() -> None:
    async with talk() as chat:
        await chat.press("ctrl+o")
        await chat.until(lambda: listed(chat) == ["nothing here yet"])
        await chat.press("down", "f2", "f8", "enter")
        assert isinstance(chat.app.screen, ChatsScreen)
        await chat.fill("anything")
        await chat.until(lambda: listed(chat) == ["nothing found"])
