"""All that is on the screen can be read: every pair of colours, in all themes and states.

The figures are those of WCAG 2: 4.5 for text, 3 for what matters less.
"""

from collections.abc import Awaitable, Callable

import pytest
from rich.color import Color
from rich.style import Style
from textual.geometry import Offset, Region
from textual.selection import Selection
from textual.widgets import Input, OptionList, Select
from textual.widgets.text_area import Selection as Range

from app.chat.state import Draft
from app.sessions.store import SessionStore
from app.tui.app import ChatApp
from kvcache import EmberError
from models.finding.store import models_folder
from tests.app.service.scripted_service import ScriptedService, layer_stats
from tests.app.tui.conftest import Talk, on_screen, talk
from tests.app.tui.test_snapshots import conversation

THEMES = sorted(ChatApp(ScriptedService()).available_themes)
ANSI = [name for name in THEMES if name.startswith("ansi")]
TEXT, DIM = 4.5, 3.0
RULES = {chr(code) for code in range(0x2500, 0x25A0)}  # frames, bars and blocks
CODE = """\
```python
@cached  # a comment
def name(self, x: int = 1) -> str:
    '''What it does.'''
    return f"{x!r} text" if None else 0x1F
```
"""
State = Callable[[Talk], Awaitable[None]]


async def a_chat_with_a_chosen_message(chat: Talk) -> None:
    chat.app.chat.chat.messages.extend(conversation().messages)
    await chat.exchange("code", CODE)
    await chat.press("tab")


async def text_and_a_prompt_that_are_selected(chat: Talk) -> None:
    await chat.exchange("code", CODE + "\n> a *quoted* `text` [link](x)\n\n| a |\n|-|\n| b |\n")
    chat.prompt.put("words to be selected")
    chat.prompt.selection = Range((0, 0), (0, 8))
    whole = Selection(Offset(0, 0), None)
    chat.screen.selections = {chat.conversation: whole}


async def suggestions_an_error_and_notices(chat: Talk) -> None:
    chat.app.chat.ask(Draft(text="hi"))
    await chat.until(lambda: chat.service.answering)
    chat.service.fail(EmberError("the disk is full"))
    for severity in ("information", "warning", "error"):
        chat.screen.notify("a notice", title="a title", severity=severity, timeout=99)
    await chat.press("/", "s", "down")


def opened(*keys: str) -> State:
    async def open_(chat: Talk) -> None:
        await chat.exchange("one", "answer")
        await chat.press(*keys)

    open_.__name__ = keys[0]
    return open_


async def the_models(chat: Talk) -> None:
    await chat.press("ctrl+l")
    await chat.until(lambda: "KV per 1k" in drawn(chat))


async def a_search(chat: Talk) -> None:
    await chat.press("ctrl+p", *"theme")
    chat.app.screen.query_one(Input).action_select_all()


async def a_list_of_themes(chat: Talk) -> None:
    await chat.press("f2")
    chat.app.screen.query_one(Select).expanded = True
    await chat.pilot.pause(0.1)


STATES: list[State] = [
    *(a_chat_with_a_chosen_message, text_and_a_prompt_that_are_selected),
    *(suggestions_an_error_and_notices, the_models, a_search, a_list_of_themes),
    *(opened(key) for key in ("f1", "f3", "f4")),
    opened("ctrl+o", "f8"),
    opened("ctrl+l", "slash"),
]


@pytest.mark.parametrize("state", STATES, ids=lambda each: each.__name__)
@on_screen
async def test_all_that_is_shown_can_be_read(state: State) -> None:
    (folder := models_folder()).mkdir(parents=True)
    (folder / "broken.gguf").write_bytes(b"GGUF")
    async with talk(store=SessionStore.in_memory()) as chat:
        chat.service.stats = layer_stats(sink=4, hot=256, cold=512, evicted=64)
        await state(chat)
        for theme in THEMES:
            chat.app.theme = theme
            await chat.pilot.pause()
            assert faint(chat) == [], theme


@pytest.mark.parametrize("key", ["ctrl+p", "ctrl+o", "ctrl+l"])
@on_screen
async def test_a_chosen_line_is_seen_to_be_chosen(key: str) -> None:
    async with talk(store=SessionStore.in_memory()) as chat:
        for text in ("one", "two"):
            await chat.exchange(text, "answer")
            await chat.type("/new")
        await chat.press(key)
        chooser = chat.app.screen.query_one(OptionList)
        await chat.until(lambda: chooser.option_count > 1)
        for theme in THEMES:
            chat.app.theme = theme
            looks = []
            for chosen in (0, 1):
                chooser.highlighted = chosen
                await chat.pilot.pause()
                styles = [part.style or Style() for part in chooser.render_line(0)]
                looks.append({(each.bgcolor, each.reverse) for each in styles})
            assert looks[0] != looks[1], theme


def drawn(chat: Talk) -> str:
    return "\n".join(strip.text for strip in chat.app.screen._compositor.render_strips())


def faint(chat: Talk) -> list[str]:
    """The texts of the screen on top that stand out too little."""
    found = []
    muted = Style.parse(chat.app.theme_variables["muted"].replace("ansi_", "")).color
    for segment in segments(chat):
        style, text = segment
        front, back = style.color, style.bgcolor
        if style.reverse:
            front, back = back, front
        shown = {each for each in text if not each.isspace() and each not in RULES}
        if not shown:
            continue
        if is_known(front) and is_known(back):
            assert front is not None
            assert back is not None
            least = DIM if front == muted or not any(map(str.isalnum, shown)) else TEXT
            if style.dim or contrast(front, back) < least:
                found.append(f"{contrast(front, back):.2f} {text!r} {front.name} on {back.name}")
        elif front == back and not (front is None or front.is_default):
            found.append(f"{text!r} in the colour of its background")
        elif any(is_grey(a) and is_default(b) for a, b in ((front, back), (back, front))):
            found.append(f"{text!r} in black or white, and whichever of both the terminal has")
    return found


def segments(chat: Talk) -> list[tuple[Style, str]]:
    """What the screen on top shows of its own, without what is behind it."""
    screen = chat.app.screen
    boxes = list(screen.query(".box"))
    region = boxes[0].region if boxes else Region(0, 0, *screen.size)
    strips = screen._compositor.render_strips()[region.y : region.bottom]
    lines = [strip.crop(region.x, region.right) for strip in strips]
    return [(each.style or Style(), each.text) for line in lines for each in line]


def is_known(color: Color | None) -> bool:
    """Whether it is not the terminal's choice."""
    return color is not None and color.triplet is not None


def is_default(color: Color | None) -> bool:
    """Whether it is what the terminal writes in, or on."""
    return color is None or color.is_default


def is_grey(color: Color | None) -> bool:
    """Whether it is black, white or between, of the terminal's sixteen."""
    return color is not None and color.number in (0, 7, 8, 15)


def contrast(one: Color, other: Color) -> float:
    light, dark = sorted(map(luminance, (one, other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(color: Color) -> float:
    assert color.triplet is not None
    linear = [
        value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4
        for value in color.triplet.normalized
    ]
    return sum(share * value for share, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_the_figures_are_those_of_the_standard() -> None:
    white, black, grey = (Color.parse(each) for each in ("#ffffff", "#000000", "#777777"))
    assert contrast(white, black) == pytest.approx(21)
    assert contrast(white, grey) == pytest.approx(4.48, abs=0.01)
