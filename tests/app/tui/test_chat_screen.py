"""Talking: the chat screen, played by a scripted model."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from textual import events
from textual.events import Paste

from app.service.contract import Prepared, TooLong
from app.sessions.chat import Attachment, State
from app.tui.screens.models import ModelsScreen
from app.tui.widgets import margin
from app.tui.widgets.cache_pane import CachePane
from app.tui.widgets.conversation import Conversation
from app.tui.widgets.layer_map import LayerMap
from app.tui.widgets.status_line import StatusLine
from app.tui.widgets.tier_events import TierEvents
from kvcache import EmberError
from models.finding.store import models_folder
from tests.app.service.scripted_service import ScriptedService, layer_stats
from tests.app.tui.conftest import click_beyond_the_screen, mouse_down, on_screen, talk

HOSTILE = (
    "[bold red]markup[/] \x1b[2J\x1b]0;owned\x07 \x9b31m \u202eevil\u202c "
    "<script>x</script> [link](file:///etc/passwd) $(rm) " + "w" * 5000
)


@on_screen
async def test_a_first_message_is_sent_as_if_it_were_typed() -> None:
    async with talk(first="Why is the sky blue?") as chat:
        await chat.until(lambda: chat.service.answering)
        assert chat.texts[0] == "Why is the sky blue?"
        assert chat.prompt.text == ""
        chat.service.finish()
        await chat.settled()
        await chat.press("up")
        assert chat.prompt.text == "Why is the sky blue?"


@on_screen
async def test_an_answer_streams_and_is_kept() -> None:
    async with talk() as chat:
        await chat.ask("why is the sky blue?")
        chat.service.read(13, 13)
        chat.service.say("Because", " of", " **scattering**")
        await chat.until(lambda: "Because of scattering▍" in chat.shown)
        chat.service.say(".")
        chat.service.finish()
        await chat.until(lambda: "▸ 4 tokens, 42.0/s, first after 0.38 s" in chat.shown)
        assert "Because of scattering." in chat.shown
        (ask,) = chat.service.asks
        assert [message.content for message in ask.messages] == ["why is the sky blue?"]


@on_screen
async def test_escape_keeps_what_was_said() -> None:
    async with talk() as chat:
        await chat.ask("count")
        chat.service.read(5, 5)
        chat.service.say("one", " two")
        await chat.until(lambda: "one two" in chat.shown)
        await chat.press("escape")
        await chat.settled()
        assert chat.app.chat.chat.messages[-1].state is State.STOPPED
        assert "one two" in chat.shown
        assert "stopped" in chat.shown


@on_screen
async def test_prefill_is_a_determinate_bar_and_escape_ends_it() -> None:
    async with talk() as chat:
        await chat.ask("long")
        status = chat.screen.query_one(StatusLine)
        chat.service.read(600, 1000, reused=200, seconds=2.0)
        await chat.until(lambda: "600/1000, 2.0 s left" in status.render().plain)
        await chat.press("escape")
        await chat.settled()
        assert chat.texts == ["long"]


@on_screen
async def test_a_chat_that_ends_while_its_draft_is_counted_leaves_no_error() -> None:
    async with talk() as chat:
        chat.prompt.put("not sent")
        await chat.pilot.pause()
    await asyncio.sleep(0.4)


@on_screen
async def test_a_question_typed_during_the_load_waits_for_it() -> None:
    async with talk(ScriptedService(holds_load=True)) as chat:
        await chat.type("hello")
        status = chat.screen.query_one(StatusLine)
        await chat.until(lambda: "1 question waits" in status.render().plain)
        assert chat.service.asks == []
        chat.service.finish_load()
        await chat.until(lambda: len(chat.service.asks) == 1)


@on_screen
async def test_escape_takes_a_waiting_question_back() -> None:
    async with talk() as chat:
        await chat.ask("one")
        await chat.type("two")
        await chat.until(lambda: chat.app.chat.queued is not None)
        await chat.press("escape")
        assert chat.prompt.text == "two"
        assert chat.app.chat.busy
        await chat.press("escape")
        await chat.press("escape")
        await chat.settled()


@on_screen
async def test_hostile_text_is_shown_inert() -> None:
    async with talk() as chat:
        await chat.exchange(HOSTILE, HOSTILE)
        for message in chat.shown.split("◆"):
            assert "\x1b" not in message
            assert "\x9b" not in message
            assert "\u202e" not in message
        assert "[bold red]markup[/]" in chat.shown
        assert "<script>x</script>" in chat.shown
        assert "␛[2J␛]0;owned␇" in chat.shown
        svg = chat.app.export_screenshot()
        assert "\x1b" not in svg


@on_screen
async def test_a_title_or_a_notice_with_markup_is_text() -> None:
    async with talk() as chat:
        await chat.exchange("[/oops] [red]", "fine")
        await chat.press("ctrl+o")
        await chat.pilot.pause(0.1)
        await chat.press("escape")
        await chat.type("/[/nothing]")
        await chat.until(lambda: "no command /[/nothing]" in chat.told)


@on_screen
async def test_the_view_follows_until_the_user_scrolls() -> None:
    async with talk(size=(80, 24)) as chat:
        await chat.ask("list")
        chat.service.read(5, 5)
        chat.service.say(*(f"line {n}\n\n" for n in range(40)))
        await chat.until(lambda: "line 39" in chat.shown)
        view = chat.conversation
        await chat.until(lambda: view.scroll_offset.y == view.max_scroll_y > 0)
        await chat.press("pageup")
        await chat.pilot.pause(0.1)
        at = view.scroll_offset.y
        chat.service.say(*(f"line {n}\n\n" for n in range(40, 60)))
        await chat.until(lambda: "line 59" in chat.shown)
        assert view.scroll_offset.y == at
        status = chat.screen.query_one(StatusLine)
        await chat.until(lambda: "new lines · End follows" in status.render().plain)
        await chat.press("end")
        await chat.until(lambda: view.scroll_offset.y == view.max_scroll_y)
        assert view.unseen == 0


@on_screen
async def test_the_panes_show_the_stats() -> None:
    async with talk() as chat:
        chat.service.stats = layer_stats(sink=4, hot=300)
        await chat.pilot.pause(0.4)
        chat.service.stats = layer_stats(sink=4, hot=256, cold=704, evicted=64)
        pane = chat.screen.query_one(CachePane)
        await chat.until(lambda: "704 tok" in pane.render().plain)
        text = pane.render().plain
        assert "4.5b" in text
        assert "evicted  64 tok" in text
        assert "ratio 2.10x  next go in 36 tok" in text
        assert "00-06×" in chat.screen.query_one(LayerMap).render().plain
        events = chat.screen.query_one(TierEvents).render().plain
        assert "768 tok → cold 28%" in events
        assert "64 tok evicted" in events


@on_screen
async def test_layers_that_differ_have_their_own_lines() -> None:
    async with talk() as chat:
        chat.service.stats = layer_stats(hot=300, layers=3) + layer_stats(hot=300, cold=9, layers=2)
        pane = chat.screen.query_one(LayerMap)
        await chat.until(lambda: pane.render().plain[:5] == "00-02")
        assert pane.render().plain.split("\n")[1].startswith("03-04")


@on_screen
async def test_messages_that_left_the_hot_tier_are_marked() -> None:
    async with talk() as chat:
        await chat.exchange("a" * 40, "b" * 40)
        await chat.ask("c" * 40)
        chat.service.stats = layer_stats(evicted=40, cold=40, hot=40)
        await chat.until(lambda: "×" in marks(chat.conversation))
        assert marks(chat.conversation).replace(" ", "") == "×▒"


def marks(conversation: Conversation) -> str:
    """The first column of what is drawn."""
    return "".join(conversation.render_line(y).text[:1] for y in range(12))


@on_screen
async def test_a_long_question_asks_before_anything_is_cut() -> None:
    async with talk() as chat:
        await chat.ask("long")
        chat.service.put(TooLong(prompt_tokens=1200, window=1000))
        chat.service.end()
        await chat.until(lambda: chat.app.screen is not chat.screen)
        await chat.choose(0)
        await chat.until(lambda: len(chat.service.asks) == 2 and chat.app.screen is chat.screen)
        assert chat.service.asks[1].cuts
        chat.service.put(TooLong(prompt_tokens=1200, window=1000))
        chat.service.end()
        await chat.until(lambda: chat.app.screen is not chat.screen)
        await chat.choose(1)
        await chat.until(lambda: chat.prompt.text == "long")
        assert chat.texts == []


@on_screen
async def test_an_error_is_a_card_that_can_be_copied(copied: list[str]) -> None:
    async with talk() as chat:
        await chat.ask("one")
        chat.service.fail(EmberError("the [disk] is gone: plug it in"))
        await chat.until(lambda: "plug it in" in chat.shown)
        assert "the answer failed" in chat.shown
        line = next(n for n, text in enumerate(chat.conversation.text_lines) if "⧉ copy" in text)
        column = chat.conversation.text_lines[line].index("⧉") + 3
        await chat.pilot.click(chat.conversation, offset=(column, line))
        await chat.until(lambda: copied != [])
        assert copied == ["the answer failed: the [disk] is gone: plug it in"]


@on_screen
async def test_a_fault_of_our_own_is_a_card_too() -> None:
    async with talk() as chat:
        await chat.ask("one")
        chat.service.fail(ZeroDivisionError("oops"))
        await chat.until(lambda: "ZeroDivisionError: oops" in chat.shown)
        assert "Traceback" not in chat.shown


@on_screen
async def test_a_code_block_is_copied_by_its_mark(copied: list[str]) -> None:
    async with talk() as chat:
        await chat.exchange("code", "```make\n", "a:\n\tb\n", "```\n")
        lines = chat.conversation.text_lines
        line = next(n for n, text in enumerate(lines) if "⧉ copy" in text)
        await chat.pilot.click(chat.conversation, offset=(lines[line].index("⧉") + 3, line))
        await chat.until(lambda: copied == ["a:\n\tb"])


@on_screen
@pytest.mark.parametrize(("clicks", "text"), [(2, "answer"), (3, "first answer here")])
async def test_clicks_select_a_word_or_a_message(clicks: int, text: str, copied: list[str]) -> None:
    async with talk() as chat:
        await chat.exchange("one", "first answer here")
        await chat.exchange("two", "second")
        lines = chat.conversation.text_lines
        row = next(at for at, line in enumerate(lines) if "first answer" in line)
        column = margin.WIDTH + lines[row].index("answer") + 2
        await chat.pilot.click(chat.conversation, offset=(column, row), times=clicks)
        await chat.until(lambda: bool(chat.screen.get_selected_text()))
        await chat.press("ctrl+c")
        await chat.until(lambda: bool(copied))
        assert copied[0].split("\n")[0].strip() == text
        assert "second" not in copied[0]


@on_screen
async def test_the_first_run_offers_to_fetch_the_default() -> None:
    async with talk(ScriptedService(missing=["smollm2"]), model="") as chat:
        await chat.until(lambda: "Enter fetches smollm2" in chat.shown)
        assert chat.service.loads == []
        await chat.press("enter")
        await chat.until(lambda: chat.service.fetches == ["smollm2"])
        chat.service.fetched(40, 100)
        await chat.until(lambda: "fetching smollm2" in chat.shown)
        chat.service.fetched(100, 100)
        await chat.until(lambda: chat.service.loads == ["smollm2"])


@on_screen
async def test_a_question_fetches_the_default_and_is_answered_then() -> None:
    async with talk(ScriptedService(missing=["smollm2"]), model="") as chat:
        await chat.until(lambda: "Enter fetches smollm2" in chat.shown)
        await chat.type("what is it")
        await chat.until(lambda: chat.service.fetches == ["smollm2"])
        chat.service.fetched(100, 100)
        await chat.until(lambda: len(chat.service.asks) == 1)
        assert chat.service.asks[0].messages[-1].content == "what is it"


@on_screen
async def test_a_load_that_was_stopped_is_offered_again() -> None:
    async with talk(ScriptedService(holds_load=True)) as chat:
        await chat.press("escape")
        await chat.until(lambda: "Enter loads it" in chat.shown)
        await chat.press("enter")
        await chat.until(lambda: len(chat.service.loads) == 2)
        assert chat.service.fetches == []


@on_screen
async def test_a_question_with_other_models_here_has_one_chosen(tiny_path: Path) -> None:
    models_folder().mkdir(parents=True)
    (models_folder() / "tiny.gguf").symlink_to(tiny_path)
    async with talk(ScriptedService(missing=["smollm2"]), model="") as chat:
        await chat.until(lambda: "On this machine" in chat.shown)
        await chat.type("what is it")
        await chat.until(lambda: isinstance(chat.app.screen, ModelsScreen))
        assert chat.service.fetches == []


@on_screen
async def test_a_model_that_is_not_there_is_a_card() -> None:
    service = ScriptedService()
    service.load_error = EmberError("nowhere.gguf: no such file")
    async with talk(service) as chat:
        await chat.until(lambda: "nowhere.gguf: no such file" in chat.shown)
        assert "the model could not be loaded" in chat.shown
        assert "Enter loads it" not in chat.shown
        await chat.press("enter")
        await chat.until(lambda: isinstance(chat.app.screen, ModelsScreen))


@on_screen
async def test_ctrl_c_stops_then_quits() -> None:
    async with talk() as chat:
        await chat.ask("one")
        await chat.press("ctrl+c")
        await chat.settled()
        await chat.press("ctrl+c")
        await chat.until(lambda: "again quits" in chat.told)
        await chat.press("ctrl+c")
        assert chat.app._exit


@on_screen
async def test_every_size_and_change_of_size_is_drawn() -> None:
    async with talk() as chat:
        chat.service.stats = layer_stats(sink=4, hot=256, cold=512, evicted=64)
        await chat.exchange("hello " * 30, "# Title\n\n", "text " * 60, "\n```py\nx = 1\n```\n")
        sizes = ((200, 60), (60, 20), (12, 3), (5, 2), (30, 8), (80, 24))
        for width, height in sizes:
            await chat.pilot.resize_terminal(width, height)
            await chat.pilot.pause(0.05)
        assert "x = 1" in chat.shown


@on_screen
async def test_a_mentioned_file_goes_along(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("remember the milk\n")
    async with talk(size=(200, 30)) as chat:
        await chat.ask(f"read @{tmp_path}/notes.md please")
        assert "remember the milk" in chat.service.asks[0].messages[0].content
        assert "remember the milk" not in chat.shown
        assert "notes.md · 18 B, 1 line" in chat.shown


@on_screen
async def test_what_is_attached_counts_before_it_is_sent(tmp_path: Path) -> None:
    (tmp_path / "large.md").write_text("word " * 300)
    async with talk() as chat:
        await chat.exchange("a" * 60, "b" * 40)
        chat.prompt.put("and?")
        await chat.until(lambda: "104 tok · fits" in chat.screen.composer.note)
        chat.prompt.put(f"@{tmp_path}/large.md")
        await chat.until(lambda: "tok · the window holds 1000" in chat.screen.composer.note)
        chat.prompt.put("and?")
        chat.screen.composer.attach(Attachment(name="paste", text="x" * 500))
        await chat.until(lambda: " tok · fits" in chat.screen.composer.note)
        weighed = int(chat.screen.composer.note.split("·")[1].split()[0])
        await chat.press("enter")
        await chat.until(lambda: chat.service.answering)
        assert weighed == sum(len(each.content) for each in chat.service.asks[-1].messages) > 600
        (tmp_path / "no.bin").write_bytes(b"\0\0")
        chat.service.finish()
        await chat.settled()
        await chat.ask("next")
        chat.prompt.put("typed meanwhile")
        await chat.pilot.pause(0.4)
        assert "tok" not in chat.screen.composer.note
        chat.service.finish()
        await chat.until(lambda: " tok · fits" in chat.screen.composer.note)
        chat.prompt.put(f"@{tmp_path}/no.bin")
        await chat.until(lambda: "no.bin" in chat.screen.composer.note)


@on_screen
async def test_what_is_left_out_is_marked_and_counted() -> None:
    async with talk() as chat:
        await chat.exchange("a" * 40, "b" * 40)
        await chat.exchange("c" * 40, "d" * 40)
        chat.service.stats = layer_stats(sink=4, hot=90)
        await chat.ask("e" * 40)
        chat.service.put(Prepared(prompt_tokens=94, ends=(0, 0, 40, 60, 94), dropped=2))
        await chat.until(lambda: marks(chat.conversation).count("×") == 2)
        pane = chat.screen.query_one(CachePane)
        await chat.until(lambda: "× left out 2 messages" in str(pane.render()))


@on_screen
async def test_a_file_that_cannot_be_read_is_refused_and_the_draft_stays(tmp_path: Path) -> None:
    (tmp_path / "bin").write_bytes(b"\0\0")
    async with talk() as chat:
        await chat.type(f"read @{tmp_path}/bin")
        await chat.until(lambda: "no text file" in chat.told)
        assert chat.prompt.text.startswith("read @")


@on_screen
async def test_a_click_on_what_is_being_taken_away_does_nothing() -> None:
    async with talk() as chat:
        conversation = chat.conversation
        # As Textual does it first of all, before the screen is laid out anew.
        parent = conversation.parent
        conversation._detach()
        chat.app.post_message(mouse_down(8, 2))
        await chat.pilot.pause()
        conversation._attach(parent)
        await chat.press("a")
        assert chat.prompt.text == "a"


@on_screen
async def test_typing_goes_to_the_prompt_after_a_click_a_tab_and_out_of_focus() -> None:
    async with talk() as chat:
        await chat.exchange("one", "first answer")
        await chat.pilot.click(chat.conversation, offset=(8, 2))
        await chat.press(*"jkgG")
        assert chat.prompt.text == "jkgG"
        await chat.press("ctrl+u", "tab", *"gone")
        assert chat.prompt.text == "gone"
        await chat.press("ctrl+u")
        chat.app.post_message(events.AppBlur())
        await chat.until(lambda: chat.screen.focused is None)
        for key in "abc":
            chat.app.post_message(events.Key(key, key))
        chat.app.post_message(Paste(" pasted"))
        await chat.until(lambda: chat.prompt.text == "abc pasted")
        chat.app.post_message(events.AppFocus())
        await chat.press("enter")
        await chat.until(lambda: len(chat.service.asks) == 2)
        chat.service.finish()
        await chat.settled()
        assert chat.texts[2] == "abc pasted"


@on_screen
async def test_keys_are_the_prompt_s_after_a_click_beyond_a_screen_that_has_shrunk() -> None:
    async with talk() as chat:
        await chat.press(*"draft")
        chat.app.post_message(click_beyond_the_screen())
        await chat.until(lambda: chat.screen.focused is None)
        await chat.press("backspace")
        assert chat.prompt.text == "draf"
        chat.app.post_message(click_beyond_the_screen())
        await chat.until(lambda: chat.screen.focused is None)
        await chat.press("enter")
        await chat.until(lambda: chat.service.answering)
        chat.service.finish()
        await chat.settled()


@on_screen
async def test_keys_that_are_typed_while_a_screen_closes_arrive() -> None:
    async with talk() as chat:
        for screen in ("f1", "f4", "ctrl+p"):
            await chat.press(screen)
            for key in ("escape", *"typed"):
                chat.app.post_message(events.Key(key, key if len(key) == 1 else None))
            await chat.until(lambda: chat.app.screen is chat.screen)
            await chat.until(lambda: chat.prompt.text == "typed")
            await chat.press("ctrl+u")


@on_screen
async def test_typing_leaves_a_page_for_the_prompt() -> None:
    async with talk() as chat:
        for screen in ("f1", "f3", "f4"):
            await chat.press(screen)
            for key in "typed":
                chat.app.post_message(events.Key(key, key))
            await chat.until(lambda: chat.prompt.text == "typed")
            assert chat.app.screen is chat.screen
            await chat.press("ctrl+u", screen, "q")
            assert chat.prompt.text == ""
            assert chat.app.screen is chat.screen


@on_screen
async def test_an_answer_that_goes_on_shows_no_figures_of_before() -> None:
    async with talk() as chat:
        await chat.exchange("one", "first")
        assert "42.0/s" in chat.shown
        await chat.type("/continue")
        await chat.until(lambda: "42.0/s" not in chat.shown)
        chat.service.say(" second")
        await chat.until(lambda: "first second▍" in chat.shown)


@on_screen
async def test_what_an_answer_cost_is_told_in_full_after_a_click() -> None:
    async with talk() as chat:
        await chat.exchange("one", "first", " answer")
        line = next(at for at, text in enumerate(chat.conversation.text_lines) if "42.0/s" in text)
        await chat.pilot.click(chat.conversation, offset=(8, line))
        await chat.until(lambda: "▾ 2 tokens, 42.0/s" in chat.shown)
        assert "the prompt: 13 tokens\n  read at 1284 tokens/s\n  by scripted" in chat.shown
        await chat.pilot.click(chat.conversation, offset=(8, line))
        await chat.until(lambda: "the prompt" not in chat.shown)


@on_screen
async def test_the_pane_never_says_full_beside_room() -> None:
    async with talk() as chat:
        pane = chat.screen.query_one(CachePane)

        def says(told: str) -> Callable[[], bool]:
            return lambda: told in pane.render().plain

        for held, evicted, told in (
            (500, 0, "full in 500 tok"),
            (936, 64, "next go in 64 tok"),
            (1000, 64, "the oldest go next"),
        ):
            chat.service.stats = layer_stats(hot=held, evicted=evicted)
            await chat.until(says(told))
            assert "window full" not in pane.render().plain


@on_screen
async def test_lines_that_a_resize_breaks_otherwise_are_not_new() -> None:
    async with talk(size=(120, 24)) as chat:
        await chat.exchange("list", *("word " * 50 + "\n\n" for _ in range(40)))
        await chat.press("pageup", "pageup")
        await chat.pilot.pause(0.1)
        status = chat.screen.query_one(StatusLine)
        for width in (60, 40, 120):
            await chat.pilot.resize_terminal(width, 24)
            await chat.pilot.pause(0.3)
            assert not chat.conversation.following
            assert chat.conversation.unseen == 0
            assert "new lines" not in status.render().plain


@on_screen
async def test_clearing_the_line_ends_an_edit() -> None:
    async with talk() as chat:
        await chat.exchange("one", "first answer")
        await chat.type("/edit")
        await chat.until(lambda: "editing" in chat.screen.composer.note)
        await chat.press("ctrl+u")
        await chat.until(lambda: "editing" not in chat.screen.composer.note)
        await chat.exchange("two", "second answer")
        assert chat.texts == ["one", "first answer", "two", "second answer"]


@on_screen
async def test_a_question_that_is_taken_back_is_edited_no_more() -> None:
    async with talk() as chat:
        await chat.exchange("one", "an answer")
        await chat.press("ctrl+up")
        assert "editing" in chat.screen.composer.note
        chat.screen.action_command("undo")
        await chat.until(lambda: not chat.texts)
        assert chat.prompt.text == "one"
        assert "editing" not in chat.screen.composer.note
