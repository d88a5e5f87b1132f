"""The screens beside the chat and its panes, opened and worked by keys."""

import asyncio
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from rich.style import Style
from textual import events
from textual.notifications import Notification
from textual.selection import SELECT_ALL
from textual.widget import Widget
from textual.widgets import Input, OptionList, Select, Static
from textual.widgets._select import SelectOverlay
from textual.widgets._toast import Toast

from app import units
from app.chat.speed_meter import Speed
from app.chat.terms import glossary
from app.events import Drafts
from app.service.contract import Told
from app.sessions.store import SessionStore
from app.tui.commands import COMMANDS
from app.tui.screens.chat import ChatScreen
from app.tui.screens.chats import ChatsScreen
from app.tui.screens.dialog import Dialog
from app.tui.screens.figures import CacheScreen, SpeedScreen
from app.tui.screens.help import HelpScreen
from app.tui.screens.models import ModelsScreen
from app.tui.screens.search import SearchScreen
from app.tui.screens.settings import SettingsScreen
from app.tui.widgets.columns import Columns
from app.tui.widgets.layer_map import LayerMap
from app.tui.widgets.pane import Pane
from app.tui.widgets.speed_pane import SpeedPane
from app.tui.widgets.status_line import StatusLine
from kvcache.errors import EmberError
from models.finding.store import models_folder
from tests.app.service.scripted_service import ScriptedService, layer_stats
from tests.app.tui.conftest import (
    Talk,
    click_beyond_the_screen,
    mouse_down,
    mouse_up,
    on_screen,
    talk,
)
from tests.app.tui.test_sizes import drawn
from tests.models.gguf.raw_gguf import STRING, RawGGUF, pair, string
from tests.models.samples import ENTRY


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


def listed(chat: Talk) -> list[str]:
    """The lines of the list that is open."""
    return [str(each.prompt) for each in chat.app.screen.query_one(OptionList).options]


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
async def test_a_title_can_be_changed() -> None:
    store = SessionStore.in_memory()
    async with talk(store=store) as chat:
        await chat.type("/title too early")
        await chat.until(lambda: "is empty" in chat.told)
        await chat.exchange("one", "1")
        await chat.type("/title [b]new[/b]")
        await chat.until(lambda: store.chats()[0].title == "[b]new[/b]")


@on_screen
async def test_the_model_picker_shows_costs_and_switches(tiny_path: Path) -> None:
    folder = models_folder()
    folder.mkdir(parents=True)
    (folder / "tiny.gguf").symlink_to(tiny_path)
    (folder / "broken.gguf").write_bytes(b"GGUF")
    named = pair("general.architecture", STRING, string("nobody-has-heard-of-it"))
    (folder / "other.gguf").write_bytes(RawGGUF(pairs=(named,)).encode())
    async with talk() as chat:
        await chat.exchange("one", "1")
        await chat.press("ctrl+l")
        screen = chat.app.screen
        assert isinstance(screen, ModelsScreen)
        chooser = screen.query_one(OptionList)

        def lines() -> list[str]:
            return [str(each.prompt) for each in chooser.options]

        def tinys() -> list[int]:
            return [at for at, line in enumerate(lines()) if "ember:tiny.gguf" in line]

        # Files are read one after the other, and each line is filled in when its file was.
        await chat.until(lambda: any("KV per 1k tokens 375 KiB" in lines()[at] for at in tinys()))
        (other,) = [line for line in lines() if "other.gguf" in line]
        size = (folder / "other.gguf").stat().st_size
        assert other.endswith("other.gguf · cannot run: architecture 'nobody-has-heard-of-it'")
        assert other.splitlines()[0].endswith(f"  {units.file_size(size)} ")
        (tiny,) = tinys()
        assert "cold " in lines()[tiny]
        assert lines()[tiny].startswith("random weights · Q8_0  ")
        assert " fits\n" in lines()[tiny]
        (fetchable,) = [line for line in lines() if "smollm2-360m" in line]
        assert "SmolLM2 360M Instruct · Q4_K_M  271 MB fits · to fetch" in fetchable
        assert "KV per 1k tokens 39.1 MiB, cold " in fetchable
        assert fetchable.endswith("smollm2-360m · small and quick")
        await chat.choose(tiny)
        await chat.until(lambda: chat.service.loads[-1] == "ember:tiny.gguf")
        assert chat.texts == ["one", "1"]
        await chat.until(lambda: not chat.app.chat.busy)
        assert chat.app.chat.chat.model == "ember:tiny.gguf"


@on_screen
async def test_the_model_picker_makes_up_no_size(monkeypatch: pytest.MonkeyPatch) -> None:
    untold = replace(ENTRY, size=None, sha256=None)
    monkeypatch.setattr("app.model_list.CATALOGUE", (untold,))
    async with talk() as chat:
        await chat.press("ctrl+l")
        chooser = chat.app.screen.query_one(OptionList)
        await chat.until(lambda: bool(chooser.options))
        (line,) = [str(each.prompt) for each in chooser.options if "tiny" in str(each.prompt)]
        assert line.splitlines()[0] == "a test's own model · Q4_1  size unknown · to fetch"


@on_screen
async def test_a_download_says_what_was_chosen_and_how_long_it_takes() -> None:
    service = ScriptedService(missing=["hf:o/r"])
    async with talk(service) as chat:
        await chat.type("/model hf:o/r")
        await chat.until(lambda: service.fetches == ["hf:o/r"])
        assert service.fetch_job is not None
        service.fetch_job.put(Told(text="Q4_K_M of 3 files is taken"))
        await chat.until(lambda: "Q4_K_M of 3 files is taken" in chat.told)
        service.fetched(50_000_000, 200_000_000)
        status = chat.screen.query_one(StatusLine)
        await chat.until(lambda: "50 MB of 200 MB" in str(status.render()))
        service.fetched(60_000_000, 200_000_000)
        await chat.until(lambda: " MB/s, " in str(status.render()))
        assert " left · Esc stops" in str(status.render())


@on_screen
async def test_a_download_shows_its_progress_and_can_be_stopped() -> None:
    service = ScriptedService(missing=["smollm2-360m"])
    async with talk(service) as chat:
        await chat.type("/model smollm2-360m")
        await chat.until(lambda: service.fetches == ["smollm2-360m"])
        service.fetched(50_000_000, 200_000_000)
        status = chat.screen.query_one(StatusLine)
        await chat.until(lambda: "50 MB of 200 MB · Esc stops" in str(status.render()))
        await chat.press("ctrl+l")
        line = chat.app.screen.query_one("#download")
        await chat.until(lambda: "50 MB of 200 MB" in str(line.render()) and line.display)
        await chat.press("f8")
        await chat.until(lambda: chat.app.chat.models.fetching is None)
        assert service.loads == ["scripted"]


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


def post_keys(chat: Talk, *keys: str) -> None:
    """All at once, as a slow line delivers them."""
    for key in keys:
        chat.app.post_message(events.Key(key, key if len(key) == 1 else None))


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


def click(chat: Talk, widget: Widget, button: int = 1) -> None:
    """On its first line."""
    at = widget.region.offset
    chat.app.post_message(mouse_down(at.x + 4, at.y, button))
    chat.app.post_message(mouse_up(at.x + 4, at.y, button))


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
@pytest.mark.parametrize("text", ["be brief\r\n\n  and kind", "be brief\nand kind\n"])
async def test_lines_that_are_pasted_into_a_field_are_all_there(text: str) -> None:
    async with talk() as chat:
        await chat.press("f2", "tab", "tab")
        chat.app.post_message(events.Paste("\n  one line\n"))
        field = chat.app.screen.query_one("#system", Input)
        await chat.until(lambda: field.value == "  one line")
        assert "pasted" not in chat.told
        field.value = ""
        chat.app.post_message(events.Paste(text))
        await chat.until(lambda: field.value == "be brief and kind")
        await chat.until(lambda: "pasted as one line: there were 2" in chat.told)


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
@pytest.mark.parametrize("size", [(60, 20), (80, 24)], ids=str)
async def test_notices_leave_the_prompt_to_be_seen(size: tuple[int, int]) -> None:
    async with talk(size=size) as chat:
        for number in range(5):
            chat.screen.notify(f"notice {number} " + "words " * 99, markup=False)
            await chat.until(lambda: len(chat.screen.query(Toast)) == 1)
            chat.screen.notify(f"short {number}", markup=False)
            await chat.pilot.pause(0.1)

        def toasts() -> list[Toast]:
            return list(chat.screen.query(Toast))

        await chat.until(lambda: str(toasts()[-1].render()) == "short 4")
        await chat.until(lambda: 0 < toasts()[-1].region.bottom <= size[1] // 2)
        for number in range(5, 20):
            chat.screen.notify(f"short {number}", markup=False)
        await chat.until(lambda: str(toasts()[-1].render()) == "short 19")
        await chat.until(lambda: 1 < len(toasts()) < 8)
        await chat.until(lambda: 0 < toasts()[-1].region.bottom <= size[1] // 2)


@on_screen
async def test_who_has_scrolled_away_is_told_what_went_wrong() -> None:
    async with talk(size=(80, 24)) as chat:
        await chat.exchange("why?", *(f"line {number}\n\n" for number in range(40)))
        await chat.press("pageup", "pageup")
        await chat.until(lambda: not chat.conversation.following)
        chat.service.load_error = EmberError("too small")
        chat.app.chat.load("another")
        await chat.until(lambda: "the model could not be loaded: too small" in chat.told)
        await chat.press("end")
        await chat.pilot.pause(0.2)
        assert chat.told.count("could not be loaded") == 1


@on_screen
@pytest.mark.parametrize(("clicks", "chosen"), [(2, "漢字と"), (3, "one 漢字と two")])
async def test_clicks_in_the_prompt_select_a_word_or_the_line(clicks: int, chosen: str) -> None:
    async with talk() as chat:
        chat.prompt.put("first\none 漢字と two")
        await chat.pilot.pause()
        await chat.pilot.click(chat.prompt, offset=(8, 1), times=clicks)
        await chat.until(lambda: chat.prompt.selected_text == chosen)


@on_screen
async def test_a_notice_that_is_over_before_it_is_drawn_keeps_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Textual's timer would turn for ever."""
    make, left = Toast.__init__, list[float]()

    def make_slowly(toast: Toast, notice: Notification) -> None:
        time.sleep(0.3)
        assert notice.time_left > 0
        left.append(notice.time_left)
        make(toast, notice)

    monkeypatch.setattr(Toast, "__init__", make_slowly)
    async with talk() as chat:
        chat.app.notify("soon over", timeout=0.2)
        await chat.until(lambda: len(left) == 1)
        await chat.until(lambda: not chat.app.screen.query(Toast))
        await chat.press(*"next")
        assert chat.prompt.text == "next"


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
async def test_a_list_of_nothing_says_so() -> None:
    async with talk() as chat:
        await chat.press("ctrl+o")
        await chat.until(lambda: listed(chat) == ["nothing here yet"])
        await chat.press("down", "f2", "f8", "enter")
        assert isinstance(chat.app.screen, ChatsScreen)
        await chat.fill("anything")
        await chat.until(lambda: listed(chat) == ["nothing found"])


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
