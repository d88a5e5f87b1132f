"""Saved prompts and personas on the screen, and what a chat has of its own."""

from pathlib import Path

from textual.widgets import OptionList

from app.chat.personas import Persona, Personas
from app.chat.settings import Settings
from app.sampling import Sampling
from app.sessions.store import SessionStore
from app.tui.screens.prompts import PromptsScreen
from app.tui.screens.question import QuestionScreen
from app.tui.widgets.header_bar import HeaderBar
from app.tui.widgets.suggestions import Suggestions
from tests.app.tui.conftest import listed, on_screen, talk

BRIEF = Persona(name="brief", system='Say "one" thing.\n', sampling={"temp": 0.2, "top_k": 40})


@on_screen
async def test_a_persona_is_saved_used_shown_and_removed(tmp_path: Path) -> None:
    store = SessionStore.open(tmp_path / "chats.db")
    path = tmp_path / "prompts.toml"
    settings = Settings(temp=0.5)
    async with talk(store=store, settings=settings, personas_path=path) as chat:
        await chat.type("/prompt save brief")
        await chat.until(lambda: "no system prompt and no sampling" in chat.told)
        await chat.type("/system be brief")
        await chat.type("/sampling temp 0.2 top_k 40")
        await chat.until(lambda: "sampled temp 0.2 top_k 40" in chat.told)
        await chat.type("/sampling temp warm")
        await chat.until(lambda: "expected a number" in chat.told)
        await chat.type("/sampling heat 3")
        await chat.until(lambda: "expected names of temp" in chat.told)
        header = chat.screen.query_one(HeaderBar)
        await chat.until(lambda: "temp 0.2 top_k 40 · “be brief”" in str(header.render()))
        await chat.type("/prompt save brief")
        await chat.until(lambda: "kept as brief" in chat.told)
        await chat.type("/prompt save review Review this code:")
        await chat.until(lambda: "kept as review" in chat.told)
        await chat.exchange("one", "1")
        assert chat.service.asks[-1].sampling == Sampling(temperature=0.2, top_k=40)
        number = chat.app.chat.chat.id
        assert number is not None
        await chat.type("/new")
        await chat.until(lambda: "be brief" not in str(header.render()))
        await chat.exchange("two", "2")
        assert chat.service.asks[-1].sampling == Sampling(temperature=0.5)
        await chat.type("/prompt brief")
        await chat.exchange("three", "3")
        assert chat.service.asks[-1].messages[0].content == "be brief"
        assert chat.service.asks[-1].sampling == Sampling(temperature=0.2, top_k=40)
        await chat.type("/prompt clear")
        await chat.exchange("four", "4")
        assert chat.service.asks[-1].messages[0].content == "two"
        assert chat.service.asks[-1].sampling == Sampling(temperature=0.5)
        await chat.type("/prompt")
        await chat.until(lambda: isinstance(chat.app.screen, PromptsScreen))
        assert chat.app.screen.query_one(OptionList).option_count == 2
        await chat.fill("review")
        await chat.press("enter")
        await chat.until(lambda: chat.prompt.text == "Review this code:")
        await chat.type("/prompt remove review")
        await chat.until(lambda: "removed review" in chat.told)
        await chat.type("/prompt nobody")
        await chat.until(lambda: "no saved prompt 'nobody': there are brief" in chat.told)
    again = SessionStore.open(tmp_path / "chats.db").load(number)
    assert (again.system, again.sampling) == ("be brief", {"temp": 0.2, "top_k": 40})


def names(path: Path) -> list[str]:
    """Of the prompts in a file."""
    return [each.name for each in Personas(path).all()]


@on_screen
async def test_a_saved_prompt_is_deleted_once_that_is_confirmed(tmp_path: Path) -> None:
    path = tmp_path / "prompts.toml"
    async with talk(personas_path=path) as chat:
        await chat.type("/prompt save review Review this code:")
        await chat.until(lambda: "kept as review" in chat.told)
        path.write_text(path.read_text() + "\n[other]\ntext = 'x'\n")
        for answer, left in ((0, ["other", "review"]), (1, ["other"])):
            await chat.type("/prompt")
            await chat.until(lambda: isinstance(chat.app.screen, PromptsScreen))
            await chat.press("end", "f8")
            await chat.until(lambda: isinstance(chat.app.screen, QuestionScreen))
            await chat.choose(answer)
            await chat.until(lambda: isinstance(chat.app.screen, PromptsScreen))
            await chat.until(lambda left=left: names(path) == left)  # type: ignore[misc]
            await chat.press("escape")


@on_screen
async def test_a_prompt_that_was_written_wrongly_is_seen_and_deleted(tmp_path: Path) -> None:
    path = tmp_path / "prompts.toml"
    path.write_text("good = {text = 'fine'}\ngreet = 5\n")
    async with talk(personas_path=path) as chat:
        await chat.type('/prompt save "quoted name" text')
        await chat.until(lambda: "which is one word without quotes" in chat.told)
        await chat.type("/prompt greet")
        await chat.until(lambda: "the saved prompt 'greet': got 5, expected {text" in chat.told)
        await chat.type("/prompt")
        await chat.until(lambda: isinstance(chat.app.screen, PromptsScreen))
        await chat.until(lambda: len(listed(chat)) == 2)
        assert listed(chat)[0] == "good\n  fine"
        assert "got 5, expected {text" in listed(chat)[1]
        await chat.press("end", "f8")
        await chat.until(lambda: isinstance(chat.app.screen, QuestionScreen))
        await chat.choose(1)
        await chat.until(lambda: isinstance(chat.app.screen, PromptsScreen))
        await chat.until(lambda: names(path) == ["good"])
        path.write_text("[a")
        await chat.press("f")
        await chat.until(
            lambda: (
                "cannot be read"
                in str(chat.app.screen.query_one(OptionList).get_option_at_index(0).prompt)
            )
        )


@on_screen
async def test_arrows_recall_what_was_asked_before(tmp_path: Path) -> None:
    store = SessionStore.open(tmp_path / "chats.db")
    async with talk(store=store) as chat:
        await chat.exchange("first question", "1")
        await chat.type("/new")
        await chat.exchange("second\nquestion", "2")
    store.close()
    async with talk(store=SessionStore.open(tmp_path / "chats.db")) as chat:
        await chat.type("/panes")
        chat.prompt.put("my draft")
        await chat.pilot.pause()
        await chat.press("up")
        assert chat.prompt.text == "/panes"
        assert not chat.screen.query_one(Suggestions).display
        await chat.press("up")
        assert chat.prompt.text == "second\nquestion"
        await chat.press("up", "up")  # to its first line, then further
        assert chat.prompt.text == "first question"
        await chat.press("down")
        assert chat.prompt.text == "second\nquestion"
        await chat.press("down", "down")
        assert chat.prompt.text == "my draft"
        await chat.press("up", "up", "up", "up", "enter")
        await chat.until(lambda: chat.service.answering)
        assert chat.texts[0] == "first question"
