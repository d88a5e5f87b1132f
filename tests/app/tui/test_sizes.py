"""Nothing that a screen says of itself is cut, in terminals of the usual sizes."""

from collections import Counter
from typing import TypeVar

import pytest
from textual.containers import VerticalScroll
from textual.content import Content
from textual.geometry import Region
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Input, OptionList, Select, Static

from app.service.contract import TooLong
from app.tui.commands import COMMANDS
from app.tui.screens.dialog import Dialog
from app.tui.screens.hub import HubScreen
from app.tui.screens.too_long import TooLongScreen
from app.tui.widgets.columns import Columns
from app.tui.widgets.key_bar import HINTS, KeyBar
from app.tui.widgets.pane import Pane
from app.tui.widgets.suggestions import Suggestions
from tests.app.tui.conftest import Talk, on_screen, talk

Shown = TypeVar("Shown", bound=Widget)
SIZES = pytest.mark.parametrize("size", [(120, 36), (100, 30), (86, 30), (80, 24)], ids=str)


def said(widget: Static | Pane | Columns) -> str:
    """All that a widget has to say."""
    if isinstance(widget, Columns):
        return " ".join(text for row in widget.rows for text in row)
    found = widget.render() if isinstance(widget, Pane) else widget.content
    assert isinstance(found, str | Content)
    return str(found)


def drawn(widget: Widget) -> str:
    """What is drawn of it."""
    return "\n".join(line.text for line in widget.render_lines(Region(0, 0, *widget.outer_size)))


def own(screen: Screen[object], kind: type[Shown]) -> list[Shown]:
    """The widgets that are laid out, without the parts of Textual's drop-down list."""
    found = (each for each in screen.query(kind) if each.region)
    return [each for each in found if not any(isinstance(a, Select) for a in each.ancestors)]


def texts(screen: Screen[object]) -> list[Static | Pane | Columns]:
    return [*own(screen, Static), *own(screen, Pane), *own(screen, Columns)]


def is_whole(widget: Widget) -> bool:
    """Whether all lines of a widget can be seen, or be scrolled to."""
    while isinstance(parent := widget.parent, Widget) and not isinstance(parent, VerticalScroll):
        if not parent.region.contains_region(widget.region):
            return False
        widget = parent
    return True


def cut(screen: Screen[object]) -> list[str]:
    """What is said and not drawn."""
    lost = []
    for each in texts(screen):
        missing = Counter(said(each).split()) - Counter(drawn(each).split())
        lost += [said(each)] if missing or not is_whole(each) else []
    for chooser in own(screen, OptionList):
        room = chooser.scrollable_content_region.width
        if chooser.styles.text_wrap == "nowrap":
            prompts = [Content(str(option.prompt)) for option in chooser.options]
            lost += [str(p) for p in prompts if any(n.cell_length > room for n in p.split("\n"))]
    fields = own(screen, Input)
    return lost + [each.placeholder for each in fields if len(each.placeholder) > each.size.width]


async def opened(chat: Talk, key: str) -> Screen[object]:
    await chat.press(key)
    await chat.until(lambda: len(chat.app.screen_stack) == 3)
    await chat.pilot.pause(0.4)
    return chat.app.screen


@SIZES
@on_screen
async def test_screens_say_all_they_have_to_say(size: tuple[int, int]) -> None:
    async with talk(size=size) as chat:
        await chat.exchange("what now?", "this")
        labels = 13 if size[0] < 84 else 25
        shown = {"f1": 4, "f2": labels, "f3": 1, "f4": 3, "ctrl+l": 1, "ctrl+o": 1, "ctrl+p": 1}
        for key, least in shown.items():
            screen = await opened(chat, key)
            assert len(texts(screen)) >= least
            assert cut(screen) == [], key
            await chat.press("escape")
            await chat.until(lambda: chat.app.screen is chat.screen)
        long = TooLong(prompt_tokens=123456, window=98765)
        chat.app.push_screen(TooLongScreen(long, chat.prompt))
        await chat.pilot.pause(0.2)
        assert cut(chat.app.screen) == []
        await chat.press("escape")
        await chat.press("ctrl+l", "slash")
        await chat.until(lambda: isinstance(chat.app.screen, HubScreen))
        await chat.pilot.pause(0.2)
        assert cut(chat.app.screen) == []
        await chat.press("escape", "escape")
        await chat.press("ctrl+o", "f8")
        await chat.pilot.pause(0.2)
        assert cut(chat.app.screen) == []


@pytest.mark.parametrize("size", [(60, 20), (120, 36)], ids=str)
@on_screen
async def test_a_screen_is_laid_out_for_its_terminal_at_once(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Textual says how large it is after a first frame."""
    frames = list[set[str]]()
    show = Screen._compositor_refresh

    def noting(screen: Screen[object]) -> None:
        if isinstance(screen, Dialog) and screen.is_mounted:
            frames.append({each for each in screen.classes if each.startswith("-")})
        show(screen)

    monkeypatch.setattr(Screen, "_compositor_refresh", noting)
    async with talk(size=size) as chat:
        for key in ("f1", "f2", "f3", "f4", "ctrl+l", "ctrl+o", "ctrl+p"):
            await opened(chat, key)
            await chat.press("escape")
            await chat.until(lambda: chat.app.screen is chat.screen)
    width = "-narrow" if size[0] < 84 else "-wide"
    assert frames
    assert all(each == {width, "-high"} for each in frames)


def seen(screen: Screen[object]) -> str:
    """What is drawn, from edge to edge."""
    lines = screen._compositor.render_strips(screen.size)
    return " ".join("".join(segment.text for segment in line) for line in lines)


@pytest.mark.parametrize("size", [(20, 5), (30, 8), (20, 12), (40, 12), (60, 10)], ids=str)
@on_screen
async def test_what_enter_takes_is_seen_and_all_of_the_text_can_be(size: tuple[int, int]) -> None:
    async with talk(size=size) as chat:
        long = TooLong(prompt_tokens=1350, window=987)
        chat.app.push_screen(TooLongScreen(long, chat.prompt))
        await chat.until(lambda: "Cut the" in seen(chat.app.screen))
        assert "The question" in seen(chat.app.screen)
        await chat.press("down")
        await chat.until(lambda: "Take the" in seen(chat.app.screen))
        for _ in range(20):
            await chat.press("pagedown")
        await chat.until(lambda: "larger." in seen(chat.app.screen))
        assert "Take the" in seen(chat.app.screen)
        await chat.press("escape")


@SIZES
@on_screen
async def test_the_chat_says_all_it_has_to_say(size: tuple[int, int]) -> None:
    async with talk(size=size) as chat:
        await chat.exchange("what now?", "this")
        await chat.pilot.pause(0.4)
        assert bool(own(chat.screen, Pane)) == (size[0] >= 100)
        assert cut(chat.screen) == []
        bar = drawn(chat.screen.query_one(KeyBar)).split("  ")
        hints = [f"{key} {label}" for key, label, _ in HINTS]
        told = [each.strip() for each in bar if each.strip()]
        assert told == hints[: len(told)]
        assert len(told) >= 8
        for command in COMMANDS:
            chat.prompt.put(f"/{command.name}")
            await chat.pilot.pause()
            assert command.about in drawn(chat.screen.query_one(Suggestions))


@pytest.mark.parametrize("size", [(20, 5), (40, 8), (60, 19)], ids=str)
@on_screen
async def test_what_is_typed_stays_in_view_in_a_low_terminal(size: tuple[int, int]) -> None:
    async with talk(size=size) as chat:
        for text, last in (("line\n" * 12 + "end", "end"), ("/", "/")):
            chat.prompt.put(text)
            await chat.pilot.pause(0.1)
            assert chat.screen.region.contains_region(chat.prompt.region)
            assert drawn(chat.prompt).split()[-1] == last
