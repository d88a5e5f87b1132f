"""Other answers, taking back and having again, on the screen."""

from pathlib import Path

import pytest
from textual import events

from app.chat.state import Draft
from app.sessions.chat import Attachment
from app.sessions.store import SessionStore
from app.tui.text.entry import VARIANT
from tests.app.service.scripted_service import layer_stats
from tests.app.tui.conftest import Talk, on_screen, talk
from tests.app.tui.test_chat_screen import marks


async def answer_again(chat: Talk, answer: str) -> None:
    """Have the last question answered again."""
    await chat.press("ctrl+r")
    await chat.until(lambda: chat.service.answering)
    chat.service.say(answer)
    chat.service.finish()
    await chat.settled()


@on_screen
async def test_arrows_on_an_empty_prompt_show_other_answers() -> None:
    async with talk() as chat:
        await chat.exchange("pets?", "cats")
        assert "1/1" not in chat.shown
        await chat.press("left")
        assert chat.texts == ["pets?", "cats"]
        await answer_again(chat, "dogs")
        assert "‹ 2/2 ›" in chat.shown
        await chat.press("left")
        await chat.until(lambda: "‹ 1/2 ›" in chat.shown)
        assert chat.texts == ["pets?", "cats"]
        await chat.exchange("why?", "they purr")
        asked = [message.content for message in chat.service.asks[-1].messages]
        assert asked == ["pets?", "cats", "why?"]
        # Letters that stand in the prompt have the arrows for themselves.
        await chat.press("tab", "up", "up")
        await chat.press("x", "left", "y")
        assert chat.prompt.text == "yx"
        chat.prompt.put("")
        await chat.press("right")
        await chat.until(lambda: chat.texts == ["pets?", "dogs"])
        assert "2 messages after variant 1 stay with it" in chat.told
        selected = chat.conversation.selected
        assert selected is not None
        assert selected.text == "dogs"
        await chat.press("left")
        await chat.until(lambda: chat.texts == ["pets?", "cats", "why?", "they purr"])


@on_screen
async def test_a_question_that_is_edited_stays_as_a_variant() -> None:
    async with talk() as chat:
        await chat.exchange("pets?", "cats")
        await chat.exchange("why?", "they purr")
        await chat.type("/edit 1")
        await chat.until(lambda: chat.prompt.text == "pets?")
        await chat.press("s", "enter")
        await chat.until(lambda: chat.service.answering)
        await chat.type("/variant 1")
        await chat.until(lambda: "stop the answer first" in chat.told)
        chat.service.say("birds")
        chat.service.finish()
        await chat.settled()
        assert chat.texts == ["pets?s", "birds"]
        await chat.type("/variant")
        await chat.until(lambda: "this is variant 2 of 2" in chat.told)
        await chat.type("/variant 3")
        await chat.until(lambda: "a number from 1 to 2" in chat.told)
        await chat.type("/variant 1")
        await chat.until(lambda: chat.texts == ["pets?", "cats", "why?", "they purr"])


@on_screen
@pytest.mark.parametrize("way", ["variant", "new", "sessions", "fork"])
async def test_an_edit_ends_where_its_question_is_shown_no_more(way: str) -> None:
    store = SessionStore.in_memory()
    async with talk(store=store) as chat:
        await chat.exchange("other", "chat")
        await chat.type("/new")
        await chat.exchange("pets?", "cats")
        await chat.press("ctrl+up", "s", "enter")
        await chat.until(lambda: chat.service.answering)
        chat.service.say("dogs")
        chat.service.finish()
        await chat.settled()
        await chat.press("ctrl+up", "x")
        assert "editing" in chat.screen.composer.note
        chat.screen.action_command(way, "previous" if way == "variant" else "")
        if way == "sessions":
            await chat.choose(1)
        await chat.until(lambda: "your text is a new draft" in chat.told)
        assert "editing" not in chat.screen.composer.note
        assert chat.prompt.text == "pets?sx"
        before = chat.texts
        await chat.exchange("pets?sx", "birds")
        assert chat.texts == [*before, "pets?sx", "birds"]


@on_screen
async def test_what_was_chosen_in_one_chat_is_not_in_the_next_one() -> None:
    store = SessionStore.in_memory()
    async with talk(store=store) as chat:
        await chat.exchange("other", "chat")
        await chat.type("/new")
        await chat.exchange("pets?", "cats")
        await answer_again(chat, "dogs")
        await chat.press("tab")
        selected = chat.conversation.selected
        assert selected is not None
        click = chat.conversation.VariantRequested(selected, -1)
        await chat.press("ctrl+o")
        await chat.until(lambda: chat.app.screen is not chat.screen)
        for key in ("down", "enter", "ctrl+up"):
            chat.app.post_message(events.Key(key, None))
        await chat.until(lambda: chat.texts == ["other", "chat"])
        await chat.until(lambda: chat.prompt.text == "other")
        assert chat.conversation.selected is None
        chat.conversation.post_message(click)
        await chat.pilot.pause(0.1)
        assert chat.texts == ["other", "chat"]


@on_screen
async def test_an_arrow_leads_back_where_the_other_one_has_led() -> None:
    async with talk() as chat:
        await chat.exchange("pets?", "cats")
        await answer_again(chat, "dogs")
        await chat.press("ctrl+up", "s", "enter")
        await chat.until(lambda: chat.service.answering)
        chat.service.say("birds")
        chat.service.finish()
        await chat.settled()
        steps = [["pets?s", "birds"], ["pets?", "dogs"], ["pets?", "cats"]]
        for key, way in (("left", steps[1:]), ("right", steps[1::-1])):
            for texts in way:
                await chat.press(key)
                await chat.until(lambda texts=texts: chat.texts == texts)  # type: ignore[misc]
        await chat.press("right")
        await chat.until(lambda: "this is variant 2 of 2" in chat.told)


@on_screen
async def test_an_edit_that_changes_nothing_leaves_no_draft_in_another_chat() -> None:
    async with talk() as chat:
        await chat.exchange("pets?", "cats")
        await chat.press("ctrl+up")
        chat.screen.action_command("new")
        await chat.until(lambda: chat.prompt.text == "")
        assert "nothing was changed" in chat.told


@on_screen
async def test_what_went_along_with_an_edited_question_goes_with_no_other_one() -> None:
    async with talk() as chat:
        note = Attachment(name="a", text="b")
        chat.screen.send(Draft(text="pets?", attachments=(note,)))
        await chat.until(lambda: chat.service.answering)
        chat.service.say("dogs")
        chat.service.finish()
        await chat.settled()
        await chat.press("ctrl+up")
        await chat.until(lambda: chat.prompt.text == "pets?")
        # A command is typed over the question.
        await chat.press("f7", *"/new", "enter")
        await chat.until(lambda: not chat.texts)
        await chat.exchange("one", "first answer")
        assert chat.app.chat.chat.messages[0].attachments == ()


@on_screen
async def test_an_edit_that_is_sent_before_its_end_is_seen_asks_nothing_elsewhere() -> None:
    async with talk() as chat:
        await chat.exchange("pets?", "cats")
        await chat.press("ctrl+up", "s")
        chat.app.chat.new_chat()
        chat.screen.action_submit()
        await chat.until(lambda: "is not shown now" in chat.told)
        await chat.until(lambda: chat.prompt.text == "pets?s")
        assert not chat.texts


@on_screen
@pytest.mark.parametrize("way", ["new", "system be brief", "set room 40"])
async def test_what_a_draft_costs_is_counted_anew_where_more_is_changed(way: str) -> None:
    async with talk() as chat:
        await chat.exchange("pets?", "cats")
        chat.prompt.put("a draft")
        weighed = chat.service.weighed
        await chat.until(lambda: bool(weighed) and weighed[-1].messages[-1].content == "a draft")
        first, (name, _, argument) = weighed[-1], way.partition(" ")
        chat.screen.action_command(name, argument)
        await chat.until(lambda: weighed[-1] != first)
        assert weighed[-1].messages[-1].content == "a draft"


@on_screen
async def test_a_click_on_the_arrows_shows_another() -> None:
    async with talk() as chat:
        await chat.exchange("pets?", "cats")
        await answer_again(chat, "dogs")
        line = next(at for at, text in enumerate(chat.conversation.text_lines) if "2/2" in text)
        y = line - chat.conversation.scroll_offset.y
        strip = chat.conversation.render_line(y)
        arrows = [
            each.style.meta[VARIANT] for each in strip if each.style and VARIANT in each.style.meta
        ]
        assert arrows == [-1, 1]
        x = strip.text.index("‹")
        await chat.pilot.click(chat.conversation, offset=(x, y))
        await chat.until(lambda: chat.texts == ["pets?", "cats"])
        await chat.pilot.click(chat.conversation, offset=(strip.text.index("›"), y))
        await chat.until(lambda: chat.texts == ["pets?", "dogs"])


@on_screen
async def test_two_quick_clicks_on_an_arrow_are_two_steps() -> None:
    async with talk() as chat:
        await chat.exchange("pets?", "cats")
        await answer_again(chat, "dogs")
        await answer_again(chat, "mice")
        line = next(at for at, text in enumerate(chat.conversation.text_lines) if "3/3" in text)
        y = line - chat.conversation.scroll_offset.y
        x = chat.conversation.render_line(y).text.index("‹")
        await chat.pilot.click(chat.conversation, offset=(x, y), times=2)
        await chat.until(lambda: chat.texts == ["pets?", "cats"])


@on_screen
async def test_what_was_taken_back_is_had_again() -> None:
    async with talk() as chat:
        await chat.press("ctrl+g")
        await chat.until(lambda: "nothing to bring back" in chat.told)
        await chat.exchange("pets?", "cats")
        await chat.exchange("why?", "they purr")
        await chat.type("/undo")
        await chat.until(lambda: chat.prompt.text == "why?")
        await chat.type("/undo")
        await chat.until(lambda: chat.prompt.text == "pets?")
        assert chat.texts == []
        await chat.press("ctrl+g")
        await chat.until(lambda: chat.texts == ["pets?", "cats"])
        assert chat.prompt.text == ""
        await chat.type("/redo")
        await chat.until(lambda: chat.texts == ["pets?", "cats", "why?", "they purr"])
        # What was typed meanwhile stays.
        await chat.type("/undo")
        await chat.until(lambda: chat.prompt.text == "why?")
        await chat.press("!", "ctrl+g")
        await chat.until(lambda: len(chat.texts) == 4)
        assert chat.prompt.text == "why?!"


@on_screen
async def test_marks_are_right_at_once_where_something_was_taken_back() -> None:
    async with talk() as chat:
        await chat.exchange("a" * 40, "b" * 40)
        await chat.exchange("c" * 20, "d" * 20)
        for at, message in enumerate(chat.app.chat.chat.messages, start=1):
            message.end = 40 * at
        chat.service.stats = layer_stats(evicted=60, cold=60, hot=40)
        await chat.until(lambda: "×" in marks(chat.conversation))
        await chat.type("/undo")
        await chat.until(lambda: len(chat.texts) == 2)
        chat.screen.show_messages()
        assert "×" not in marks(chat.conversation)
        await chat.press("ctrl+g")
        await chat.until(lambda: len(chat.texts) == 4)
        chat.screen.show_messages()
        assert "×" in marks(chat.conversation)


@on_screen
async def test_the_title_of_a_copy_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    async with talk(store=SessionStore.open(path)) as first:
        await first.exchange("pets?", "cats")
        other = SessionStore.open(path)
        async with talk(store=other) as second:
            found = other.latest()
            assert found is not None
            second.app.chat.show_chat(found)
            await second.until(lambda: "open in another window" in second.told)
            await second.type("/title mine")
            await second.until(lambda: "renamed to mine" in second.told)
        titles = [each.title for each in SessionStore.open(path).chats()]
        assert sorted(titles) == ["mine", "pets?"]


@on_screen
async def test_a_long_question_that_is_taken_back_goes_along_without_being_typed() -> None:
    async with talk() as chat:
        await chat.ask("one")
        chat.app.chat.ask(Draft(text="long " * 20_000))
        await chat.press("escape")
        await chat.until(lambda: chat.app.chat.queued is None)
        assert chat.prompt.text == ""
        assert "@ pasted text 1" in chat.screen.composer.note
        await chat.press("escape", "escape")
        await chat.settled()


@on_screen
async def test_another_height_makes_no_line_anew() -> None:
    async with talk() as chat:
        await chat.exchange("long " * 500, "short")
        before = [line for entry in chat.conversation._roll.entries for line in entry.lines]
        chat.prompt.put("\n" * 5)
        await chat.until(lambda: chat.prompt.size.height > 5)
        await chat.pilot.pause()
        after = [line for entry in chat.conversation._roll.entries for line in entry.lines]
        assert all(one is other for one, other in zip(before, after, strict=True))
