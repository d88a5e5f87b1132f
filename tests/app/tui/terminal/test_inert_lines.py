from rich.segment import Segment
from rich.style import Style
from textual.color import Color

from app.tui.terminal.inert_lines import InertLines
from tests.app.tui.conftest import on_screen, talk

BLACK = Color(0, 0, 0)


def test_harmless_segments_stay_the_same_objects() -> None:
    given = [Segment("grün 🙂", Style(bold=True)), Segment("[link=x]")]
    assert all(a is b for a, b in zip(InertLines().apply(given, BLACK), given, strict=True))


def test_what_a_terminal_obeys_is_replaced_and_keeps_its_style() -> None:
    bold = Style(bold=True)
    found = InertLines().apply([Segment("a\x1b[2J\tb\nc\x9b", bold)], BLACK)
    assert found == [Segment("a␛[2J b␊c\ufffd", bold)]


@on_screen
async def test_what_nobody_made_inert_is_inert_on_the_screen() -> None:
    async with talk() as chat:
        chat.screen.notify("told \x1b[2J", markup=False)
        chat.screen.composer.prompt.border_title = "titled \x1b[2J"
        await chat.pilot.pause(0.2)
        svg = chat.app.export_screenshot()
    assert "\x1b" not in svg
    assert "␛[2J" in svg
