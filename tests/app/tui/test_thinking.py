"""A chat with a model that thinks: on the screen, in the store, in files, in the next prompt."""

import json
from functools import partial
from pathlib import Path

from app.chat.settings import Settings
from app.service.live_service import LiveService
from app.sessions.chat import State, Thought
from app.sessions.store import SessionStore
from app.tui.app import ChatApp
from app.tui.screens.help import HelpScreen
from app.tui.widgets.status_line import StatusLine
from kvcache import Backend, CacheConfig
from tests import thinking_models as thinkers
from tests.app.service.scripted_service import ScriptedService
from tests.app.tui.conftest import Talk, on_screen, talk
from tests.thinking_models import ANSWER, THOUGHT


def is_told(chat: Talk, line: str) -> bool:
    return line in chat.told


def is_answered(chat: Talk, messages: int) -> bool:
    return len(chat.texts) == messages and not chat.app.chat.busy


async def thinks(chat: Talk, question: str = "why?") -> None:
    """A question, and an answer after some thinking."""
    await chat.ask(question)
    chat.service.read(13, 13)
    chat.service.think("Hm,", " 42\n", "So.")
    chat.service.say("Be", "cause.")
    chat.service.finish()
    await chat.settled()


@on_screen
async def test_thinking_is_a_live_line_and_ctrl_t_opens_it() -> None:
    async with talk() as chat:
        await chat.ask("why?")
        chat.service.read(13, 13)
        chat.service.think("Hm,", " 42")
        await chat.until(lambda: "▸ thinking 2 tok, 0 s" in chat.shown)
        status = chat.screen.query_one(StatusLine)
        await chat.until(lambda: "thinking · Esc stops" in status.render().plain)
        assert "Hm" not in chat.shown
        await chat.press("ctrl+t")
        assert "▾ thinking 2 tok, 0 s\n│ Hm, 42" in chat.shown
        chat.service.think("\nSo.")
        await chat.until(lambda: "│ Hm, 42\n│ So." in chat.shown)
        chat.service.say("Because")
        await chat.until(lambda: "Because" in chat.shown)
        assert "answering" in status.render().plain
        chat.service.say(".")
        chat.service.finish()
        await chat.settled()
        await chat.press("ctrl+t")
        assert "▸ thinking 3 tok, 0 s\n\nBecause." in chat.shown
        assert "│" not in chat.shown
        # Tokens of thinking are tokens.
        assert "5 tokens, 42.0/s" in chat.shown
        assert chat.texts == ["why?", "Because."]


@on_screen
async def test_the_selected_answers_thinking_is_opened_and_a_click_does_it_too() -> None:
    async with talk() as chat:
        await thinks(chat, "one")
        await thinks(chat, "two")
        await chat.press("tab", "up", "up")
        await chat.press("ctrl+t")
        first, second = chat.shown.split("two")
        assert "│ So." in first
        assert "│" not in second
        row = chat.conversation.text_lines.index("▾ thinking 3 tok, 0 s")
        await chat.pilot.click(chat.conversation, offset=(8, row))
        assert "│" not in chat.shown


@on_screen
async def test_without_thinking_there_is_nothing_to_open() -> None:
    async with talk() as chat:
        await chat.exchange("one", "two")
        await chat.press("ctrl+t")
        await chat.until(lambda: "no thinking here" in chat.told)
        await chat.press("f1")
        assert isinstance(chat.app.screen, HelpScreen)


@on_screen
async def test_thinking_may_be_open_from_the_start() -> None:
    async with talk(settings=Settings(show_thinking=True)) as chat:
        await thinks(chat)
        assert "│ Hm, 42" in chat.shown


@on_screen
async def test_the_setting_opens_and_folds_what_is_shown() -> None:
    async with talk() as chat:
        await thinks(chat, "one")
        await thinks(chat, "two")
        await chat.type("/set show_thinking on")
        await chat.until(lambda: chat.shown.count("│ Hm, 42") == 2)
        await chat.type("/set show_thinking off")
        await chat.until(lambda: "│" not in chat.shown)


@on_screen
async def test_copy_and_search_and_export(copied: list[str], tmp_path: Path) -> None:
    store = SessionStore.open(tmp_path / "chats.db")
    async with talk(store=store) as chat:
        await chat.exchange("hello", "there")
        await thinks(chat)
        for command in ("/copy", "/copy thinking", f"/export {tmp_path}/a.md"):
            await chat.type(command)
        await chat.type(f"/export {tmp_path}/a.json")
        await chat.until(lambda: (tmp_path / "a.json").exists() and len(copied) == 2)
        assert copied == ["Because.", "Hm, 42\nSo."]
        found = json.loads((tmp_path / "a.json").read_text())["messages"]
        assert found[1]["thinking"] is None
        assert found[3]["thinking"] == {"text": "Hm, 42\nSo.", "tokens": 3, "seconds": 3 / 42}
        summary = "<summary>Thinking (3 tokens, 0 s)</summary>"
        folded = f"<details>\n{summary}\n\n> Hm, 42\n> So.\n\n</details>"
        assert f"## Model\n\n{folded}\n\nBecause.\n" in (tmp_path / "a.md").read_text()
        (hit,) = store.chats("42")
        assert "Hm, 42" in hit.snippet


@on_screen
async def test_think_sets_the_switch_and_the_budget_goes_along() -> None:
    async with talk(ScriptedService(thinks=True, has_switch=True)) as chat:
        for number, word in enumerate(["off", "on", "auto"]):
            await chat.type(f"/think {word}")
            told = f"think is {word}"
            await chat.until(partial(is_told, chat, told))
            await chat.type(f"/set think_budget {number + 70}")
            await chat.exchange("x", "y")
        asked = [(ask.think, ask.think_budget) for ask in chat.service.asks]
        assert asked == [(False, 70), (True, 71), (None, 72)]
        await chat.type("/think maybe")
        await chat.until(lambda: "expected auto, on, off" in chat.told)


@on_screen
async def test_a_model_without_a_switch_is_told_of() -> None:
    async with talk(ScriptedService(thinks=True), settings=Settings(think="off")) as chat:
        line = "no switch for thinking: /set think_budget 0 ends it as soon as it begins"
        await chat.until(lambda: line in chat.told)
        await chat.type("/think on")
        await chat.until(lambda: chat.told.count(line) == 2)
        assert chat.screen.settings.think == "off"
        await chat.type("/set think on")
        await chat.until(lambda: chat.told.count(line) == 3)
    async with talk() as chat:
        await chat.type("/think off")
        await chat.until(lambda: "knows no thinking" in chat.told)


@on_screen
async def test_an_answer_stopped_in_its_thinking_is_kept_and_goes_on() -> None:
    async with talk() as chat:
        await chat.ask("why?")
        chat.service.read(13, 13)
        chat.service.think("Hm,")
        await chat.until(lambda: "thinking 1 tok" in chat.shown)
        await chat.press("escape")
        await chat.settled()
        answer = chat.app.chat.chat.messages[-1]
        assert (answer.text, answer.state) == ("", State.STOPPED)
        assert answer.thought == Thought(text="Hm,", tokens=1, seconds=1 / 42)
        await chat.type("/continue")
        await chat.until(lambda: chat.service.answering)
        ask = chat.service.asks[-1]
        assert ask.continues
        assert (ask.messages[-1].content, ask.messages[-1].thinking) == ("", "Hm,")
        chat.service.think(" so")
        chat.service.say("Because.")
        chat.service.finish()
        await chat.settled()
        assert answer.text == "Because."
        assert answer.thought == Thought(text="Hm, so", tokens=2, seconds=2 / 42)
        assert answer.figures is not None
        assert answer.figures.tokens == 3
        # A new question leaves out an answer that is no more than thinking.
        await chat.press("ctrl+r")
        await chat.until(lambda: chat.service.answering)
        chat.service.think("Hm")
        chat.service.finish()
        await chat.settled()
        await chat.ask("and?")
        assert [each.content for each in chat.service.asks[-1].messages] == ["why?\n\nand?"]


@on_screen
async def test_a_chat_with_a_thinking_model_is_resumed(tmp_path: Path) -> None:
    path = thinkers.QWEN.write(tmp_path / "qwen.gguf")
    store = SessionStore.open(tmp_path / "chats.db")
    service = LiveService(CacheConfig(backend=Backend.REFERENCE))
    app = ChatApp(service, model=str(path), store=store)
    async with app.run_test(size=(120, 36)) as pilot:
        chat = Talk(app, service, pilot)
        await chat.until(lambda: app.chat.model is not None)
        model = app.chat.model
        assert model is not None
        assert (model.thinks, model.has_switch) == (True, True)
        for number, question in enumerate(("one?", "two?"), start=1):
            await chat.type(question)
            await chat.until(partial(is_answered, chat, 2 * number))
        assert chat.texts == ["one?", ANSWER, "two?", ANSWER]
        assert "▸ thinking 6 tok" in chat.shown
        assert "think>" not in chat.shown
        # All of the first prompt is in the second; what was thought after it is not.
        first, second = (each.figures for each in app.chat.chat.messages[1::2])
        assert first is not None
        assert second is not None
        assert second.reused_tokens == first.prompt_tokens
        await chat.type("/fork")
        await chat.until(lambda: app.chat.chat.title.endswith("(fork)"))
        await chat.type("/think off")
        await chat.type("three?")
        await chat.until(partial(is_answered, chat, 6))
        assert app.chat.chat.messages[-1].thought is None
    store.close()
    again = SessionStore.open(tmp_path / "chats.db").latest()
    assert again is not None
    thoughts = [each.thought.text if each.thought else "" for each in again.messages]
    assert thoughts == ["", THOUGHT, "", THOUGHT, "", ""]
    app = ChatApp(service, model=str(path), chat=again)
    async with app.run_test(size=(80, 24)) as pilot:
        chat = Talk(app, service, pilot)
        await chat.until(lambda: app.chat.model is not None and "three?" in chat.shown)
        await chat.type("four?")
        await chat.until(partial(is_answered, chat, 8))
        assert app.chat.chat.messages[-1].thought is not None
    service.close()
