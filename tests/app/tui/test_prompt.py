"""The line where one types: keys, pastes, clicks, in the order in which they come."""

import time

import pytest
from textual import events
from textual.events import Paste

from app.tui.welcome import STARTERS
from tests.app.tui.conftest import on_screen, talk


@on_screen
@pytest.mark.parametrize(("clicks", "chosen"), [(2, "漢字と"), (3, "one 漢字と two")])
async def test_clicks_in_the_prompt_select_a_word_or_the_line(clicks: int, chosen: str) -> None:
    async with talk() as chat:
        chat.prompt.put("first\none 漢字と two")
        await chat.pilot.pause()
        await chat.pilot.click(chat.prompt, offset=(8, 1), times=clicks)
        await chat.until(lambda: chat.prompt.selected_text == chosen)


@on_screen
async def test_an_undo_may_take_the_scroll_bar_away() -> None:
    async with talk() as chat:
        lines = 0
        while not chat.prompt.show_vertical_scrollbar:
            lines += 1
            await chat.press("ctrl+j")
        await chat.press("ctrl+underscore")
        assert chat.prompt.text == "\n" * (lines - 1)
        assert chat.prompt.cursor_location == (lines - 1, 0)
        assert not chat.prompt.show_vertical_scrollbar


@on_screen
async def test_tab_offers_starters_in_turn() -> None:
    async with talk() as chat:
        await chat.until(lambda: "Ask anything" in chat.shown)
        await chat.press("tab")
        first = chat.prompt.text
        assert first in chat.shown
        line = next(n for n, text in enumerate(chat.conversation.text_lines) if "robot" in text)
        await chat.pilot.click(chat.conversation, offset=(6, line))
        await chat.until(lambda: "robot" in chat.prompt.text)


@on_screen
@pytest.mark.parametrize("earlier", ["one", ""], ids=["recalled", "starter"])
async def test_keys_that_come_all_at_once_follow_what_puts_a_text_in(earlier: str) -> None:
    async with talk() as chat:
        if earlier:
            await chat.exchange(earlier, "an answer")
        for key in ("up" if earlier else "tab", "!", "?"):
            chat.app.post_message(events.Key(key, key if len(key) == 1 else None))
        await chat.until(lambda: chat.prompt.text.endswith("!?"))
        assert chat.prompt.text == (earlier or STARTERS[0]) + "!?"


@on_screen
async def test_an_enter_right_after_a_long_paste_sends_it_along() -> None:
    async with talk() as chat:
        long = "long " * 1000
        for each in (events.Paste(long), events.Key("!", "!"), events.Key("enter", None)):
            chat.app.post_message(each)
        await chat.until(lambda: chat.service.answering)
        asked = chat.service.asks[-1].messages[-1].content
        assert "!" in asked
        assert long.strip() in asked


@on_screen
async def test_a_question_right_after_a_command_comes_after_it() -> None:
    async with talk() as chat:
        await chat.exchange("one", "an answer")
        for key in "/new\ntwo\n":
            chat.app.post_message(
                events.Key("enter", None) if key == "\n" else events.Key(key, key)
            )
        await chat.until(lambda: chat.service.answering)
        assert chat.texts == ["two", ""]


@on_screen
async def test_a_paste_of_a_megabyte_becomes_an_attachment() -> None:
    async with talk() as chat:
        chat.prompt.post_message(Paste("data \x1b[31m\n" * 100_000))
        await chat.until(lambda: "the window holds" in chat.screen.composer.note)
        assert chat.screen.composer.note.startswith("@ pasted text 1 · ")
        assert chat.prompt.text == ""
        await chat.ask("summarize")
        assert chat.screen.composer.note == ""
        assert "data ␛[31m" in chat.service.asks[0].messages[0].content
        assert "@ pasted text 1 · " in chat.shown


@on_screen
async def test_fast_keys_keep_their_order() -> None:
    async with talk() as chat:
        for key, character in (("a", "a"), ("b", "b"), ("ctrl+j", "\n"), ("c", "c")):
            chat.app.post_message(events.Key(key, character))
        await chat.until(lambda: "c" in chat.prompt.text)
        assert chat.prompt.text == "ab\nc"


@on_screen
async def test_lines_that_are_typed_fast_are_sent_one_by_one() -> None:
    async with talk() as chat:
        await chat.exchange("one", "first answer")
        for line in ("two", "three", "four", "/title lines"):
            for key in line:
                chat.app.post_message(events.Key(key, key))
            chat.app.post_message(events.Key("enter", "\r"))
        for key in "five":
            chat.app.post_message(events.Key(key, key))
        await chat.until(lambda: chat.prompt.text == "four\nfive")
        assert "one question waits already" in chat.told
        assert chat.texts == ["one", "first answer", "two", ""]
        assert chat.app.chat.queued is not None
        assert chat.app.chat.queued.text == "three"
        await chat.until(lambda: chat.app.chat.chat.title == "lines")
        assert chat.prompt.text == "four\nfive"


@on_screen
async def test_what_is_typed_right_after_escape_follows_what_that_takes_back() -> None:
    async with talk() as chat:
        await chat.ask("one")
        await chat.type("two")
        await chat.until(lambda: chat.app.chat.queued is not None)
        for key, letter in (("escape", None), ("x", "x"), ("y", "y")):
            chat.app.post_message(events.Key(key, letter))
        await chat.until(lambda: "y" in chat.prompt.text)
        await chat.pilot.pause()
        assert chat.prompt.text == "twoxy"
        chat.service.finish()


@on_screen
async def test_keys_of_completions_that_were_closed_are_for_what_they_were_before() -> None:
    async with talk() as chat:
        await chat.exchange("one", "first answer")
        await chat.press(*"/k")
        await chat.until(lambda: chat.prompt.suggesting)
        await chat.press("escape", "up")
        await chat.until(lambda: chat.prompt.text == "one")
        await chat.press("down")
        await chat.until(lambda: chat.prompt.text == "/k")


@on_screen
async def test_a_draft_in_whose_place_another_text_comes_is_recalled() -> None:
    async with talk() as chat:
        await chat.exchange("one", "first answer")
        await chat.press(*"draft", "ctrl+up")
        await chat.until(lambda: chat.prompt.text == "one")
        await chat.press("escape", "up")
        await chat.until(lambda: chat.prompt.text == "draft")
        await chat.press("ctrl+up")
        await chat.until(lambda: chat.prompt.text == "one")
        await chat.press("s", "escape", "up")
        await chat.until(lambda: chat.prompt.text == "ones")
        await chat.press("ctrl+u")
        await chat.ask("two")
        await chat.type("three")
        await chat.until(lambda: chat.app.chat.queued is not None)
        await chat.press(*"four", "escape")
        await chat.until(lambda: chat.prompt.text == "three")
        await chat.press("up")
        await chat.until(lambda: chat.prompt.text == "four")


@on_screen
async def test_keys_are_not_kept_waiting_by_a_megabyte_that_is_attached() -> None:
    """It and the keys after it cost the screen's thread what a few pages cost, or little more."""
    async with talk() as chat:
        line, taken = "some words of text\n", []
        pastes = [Paste(line * lines) for lines in (250, 250, 55_000)]
        for event in (*pastes, *(events.Key(key, key) for key in "keys")):
            began = time.thread_time()
            chat.prompt.post_message(event)
            await chat.pilot.pause(0.3)
            taken.append(time.thread_time() - began)
        assert chat.prompt.text == "keys"
        assert all(f"pasted text {at}" in chat.screen.composer.note for at in (1, 2, 3))
        first, again, *with_megabyte = taken
        assert max(with_megabyte) < 4 * max(first, again), taken


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (["a", "b", "backspace", "c"], "ac"),
        (["q", "home", "w"], "wq"),
        (["a", "ctrl+u", "b"], "b"),
        (["a", "f7", "backspace", "b"], "b"),
    ],
)
@on_screen
async def test_keys_that_come_all_at_once_keep_their_order(keys: list[str], text: str) -> None:
    async with talk() as chat:
        for key in keys:
            chat.app.post_message(events.Key(key, key if len(key) == 1 else None))
        await chat.until(lambda: chat.prompt.text == text)


@on_screen
async def test_what_is_sent_waits_before_an_escape_right_after_it() -> None:
    async with talk() as chat:
        await chat.ask("one")
        chat.prompt.put("two")
        for key, letter in (("enter", None), ("escape", None), ("x", "x"), ("y", "y")):
            chat.app.post_message(events.Key(key, letter))
        await chat.until(lambda: "y" in chat.prompt.text)
        await chat.pilot.pause()
        assert chat.prompt.text == "twoxy"
        assert chat.app.chat.queued is None
        chat.service.finish()
