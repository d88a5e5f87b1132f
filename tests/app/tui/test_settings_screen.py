"""The page of settings, its fields and its lists that drop down."""

import pytest
from textual import events
from textual.widgets import Input, Select, Static
from textual.widgets._select import SelectOverlay

from app.tui.screens.settings import SettingsScreen
from tests.app.tui.conftest import (
    click,
    on_screen,
    post_keys,
    talk,
)
from tests.app.tui.test_sizes import drawn


@on_screen
async def test_the_settings_screen_checks_before_it_saves() -> None:
    async with talk() as chat:
        await chat.press("f2")
        assert isinstance(chat.app.screen, SettingsScreen)
        field = chat.app.screen.query_one("#temp")
        field.value = "-3"  # type: ignore[attr-defined]  # an Input
        await chat.press("ctrl+s")
        assert isinstance(chat.app.screen, SettingsScreen)
        field.value = "1.5"  # type: ignore[attr-defined]
        await chat.press("ctrl+s")
        await chat.until(lambda: chat.app.screen is chat.screen)
        assert chat.app.preferences.settings.temp == 1.5


@on_screen
@pytest.mark.parametrize("most", ["5", "none"])
async def test_a_key_for_a_page_that_has_gone_saves_nothing(most: str) -> None:
    """It may have been on its way already."""
    async with talk() as chat:
        await chat.press("f2")
        screen = chat.app.screen
        assert isinstance(screen, SettingsScreen)
        screen.query_one("#temp", Input).value = "0.5"
        screen.query_one("#max_tokens", Input).value = most
        await chat.press("escape")
        await chat.until(lambda: not screen.is_attached)
        screen.action_save()
        await chat.pilot.pause()
        assert chat.app.preferences.settings.temp is None
        assert chat.app.screen is chat.screen


@on_screen
async def test_a_text_after_a_tab_is_the_next_field_s() -> None:
    async with talk() as chat:
        # The first is a list to choose from.
        post_keys(chat, "f2", "tab", *"one", "tab", *"two", "tab", "3", "tab", "4")

        def values() -> list[str]:
            return [each.value for each in chat.app.screen.query(Input)][:4]

        await chat.until(lambda: values()[3:] == ["4"])
        assert values() == ["one", "two", "3", "4"]
        assert chat.prompt.text == ""


@on_screen
@pytest.mark.parametrize("size", [(60, 20), (80, 24), (120, 36), (40, 10)], ids=str)
async def test_a_list_that_drops_down_is_seen_and_clicked_on(size: tuple[int, int]) -> None:
    async with talk(size=size) as chat:
        await chat.press("f2")
        await chat.until(lambda: isinstance(chat.app.screen, SettingsScreen))
        chooser = chat.app.screen.query(Select).first()
        await chat.until(lambda: chooser.region.height == 1)
        await chat.pilot.click(chooser)
        options = chooser.query_one(SelectOverlay)
        await chat.until(lambda: options.region.height >= 5)
        assert chat.app.screen.region.contains_region(options.region)
        wanted = str(options.get_option_at_index(options.scroll_offset.y + 2).prompt)
        at = options.region.offset
        await chat.pilot.click(offset=(at.x + 4, at.y + 2))
        await chat.until(lambda: chooser.value == wanted)
        assert not chooser.expanded


@on_screen
async def test_a_click_beside_a_list_that_drops_down_closes_it() -> None:
    async with talk() as chat:
        await chat.press("f2")
        chooser = chat.app.screen.query(Select).first()
        for beside in (chooser, chat.app.screen.query_one("#model"), chat.app.screen):
            await chat.until(lambda: chooser.region.height == 1)
            click(chat, chooser)
            options = chooser.query_one(SelectOverlay)
            await chat.until(lambda options=options: options.region.height >= 5)  # type: ignore[misc]
            click(chat, beside)
            await chat.until(lambda: not chooser.expanded)
            await chat.pilot.pause(0.1)
            assert not chooser.expanded
            assert chat.app.focused is chooser


@on_screen
@pytest.mark.parametrize("text", ["be brief\r\n\n  and kind", "be brief\nand kind\n"])
async def test_lines_that_are_pasted_into_a_field_are_all_there(text: str) -> None:
    async with talk() as chat:
        await chat.press("f2", "tab", "tab")
        chat.app.post_message(events.Paste("\n  one line\n"))
        field = chat.app.screen.query_one("#system", Input)
        await chat.until(lambda: field.value == "  one line")
        chat.app.post_message(events.Paste(" "))
        await chat.until(lambda: field.value == "  one line ")
        assert "pasted" not in chat.told
        field.value = ""
        chat.app.post_message(events.Paste(text))
        await chat.until(lambda: field.value == "be brief and kind")
        await chat.until(lambda: "pasted as one line: there were 2" in chat.told)


@on_screen
async def test_a_narrow_page_of_settings_says_below_what_the_chosen_one_is() -> None:
    async with talk(size=(60, 20)) as chat:
        await chat.press("f2")
        hint = chat.app.screen.query_one("#hint", Static)
        for name in ("theme", "model", "system", "temp"):
            await chat.until(lambda name=name: f"{name}: " in drawn(hint))  # type: ignore[misc]
            await chat.press("tab")
        await chat.press("shift+tab")
        await chat.until(lambda: "temp: " in drawn(hint))
        assert "0: the likeliest; empty: the model's" in drawn(hint)
