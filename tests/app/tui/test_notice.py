"""What is said for some seconds over the chat."""

import time

import pytest
from textual.notifications import Notification
from textual.widgets._toast import Toast

from kvcache.errors import EmberError
from tests.app.tui.conftest import (
    on_screen,
    talk,
)


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
        await chat.until(lambda: all(0 < each.region.bottom <= size[1] // 2 for each in toasts()))
        for number in range(5, 20):
            chat.screen.notify(f"short {number}", markup=False, timeout=99)
        await chat.until(lambda: 1 < len(toasts()) < 8)
        await chat.until(lambda: str(toasts()[-1].render()) == "short 19")
        await chat.until(lambda: all(0 < each.region.bottom <= size[1] // 2 for each in toasts()))
        await chat.pilot.resize_terminal(60, 12)
        await chat.until(lambda: len(toasts()) == 2)


@on_screen
@pytest.mark.parametrize(
    "text",
    ["/a/long/path/" * 30, "line\n" * 30, "漢字 and words " * 30, "a-model-name.Q4_K_M " * 20],
    ids=["path", "lines", "wide", "names"],
)
async def test_one_notice_leaves_the_prompt_to_be_seen(text: str) -> None:
    async with talk(size=(60, 20)) as chat:
        chat.screen.notify(text, markup=False)
        await chat.until(lambda: any(each.region for each in chat.screen.query(Toast)))
        assert chat.screen.query(Toast).first().region.bottom <= 11


@on_screen
async def test_what_there_is_to_say_waits_for_room() -> None:
    async with talk(size=(80, 24)) as chat:
        chat.app.chat.notices += [f"{number} " + "words " * 50 for number in range(3)]
        await chat.until(lambda: "0 words" in chat.told)
        await chat.pilot.pause(0.3)
        assert "1 words" not in chat.told
        chat.app.clear_notifications()
        await chat.until(lambda: "1 words" in chat.told)


@on_screen
async def test_a_notice_that_was_clicked_away_over_a_dialog_leaves_no_gap() -> None:
    async with talk() as chat:
        chat.screen.notify("first", markup=False)
        await chat.until(lambda: len(chat.screen.query(Toast)) == 1)
        await chat.press("f1")
        page = chat.app.screen
        await chat.until(lambda: any(each.region.height for each in page.query(Toast)))
        top = page.query(Toast).first().region.y
        await chat.pilot.click(page.query(Toast).first())
        await chat.until(lambda: not page.query(Toast))
        await chat.press("escape")
        await chat.until(lambda: chat.app.screen is chat.screen)
        chat.screen.notify("second", markup=False)
        await chat.until(
            lambda: [each.region.y for each in chat.screen.query(Toast) if each.region] == [top]
        )


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
        await chat.press("pageup", "pageup")
        await chat.until(lambda: not chat.conversation.following)
        chat.app.chat.load("another")
        await chat.until(lambda: chat.told.count("could not be loaded") == 2)


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
