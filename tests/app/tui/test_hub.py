"""The page that searches the Hub, in the chat."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from textual.widgets import Input, OptionList, Static

from app.tui.screens.hub import HubScreen
from app.tui.screens.models import ModelsScreen
from models.finding.hub import HubFile
from tests.app.service.scripted_service import ScriptedService
from tests.app.tui.conftest import Talk, on_screen, talk
from tests.models.finding.hub_server import FakeHub, running_hub
from tests.models.gguf.raw_gguf import STRING, RawGGUF, pair, string

REPO = "someone/Tiny-GGUF"
FILE = HubFile(repo=REPO, file="tiny-Q8_0.gguf")
OTHER = "someone/Other-GGUF"


@pytest.fixture
def hub(no_models: None, tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    named = pair("general.architecture", STRING, string("nobody-has-heard-of-it"))
    with running_hub(monkeypatch) as server:
        server.add(REPO, FILE.file, tiny_path.read_bytes())
        server.add(REPO, "tiny-f16.gguf", tiny_path.read_bytes() + bytes(512))
        server.add(OTHER, "other-Q4_0.gguf", RawGGUF(pairs=(named,)).encode())
        server.told[REPO] = {
            "downloads": 4321,
            "gguf": {"total": 135_000_000, "architecture": "llama"},
        }
        yield server


def lines(chat: Talk) -> list[str]:
    return [str(each.prompt) for each in chat.app.screen.query_one(OptionList).options]


def said(chat: Talk) -> str:
    return str(chat.app.screen.query_one(".said", Static).render())


async def opened(chat: Talk) -> HubScreen:
    await chat.press("ctrl+l")
    await chat.until(lambda: isinstance(chat.app.screen, ModelsScreen))
    await chat.press("slash")
    await chat.until(lambda: isinstance(chat.app.screen, HubScreen))
    screen = chat.app.screen
    assert isinstance(screen, HubScreen)
    return screen


@on_screen
async def test_a_model_is_searched_looked_at_and_fetched(hub: FakeHub) -> None:
    service = ScriptedService(missing=[str(FILE)])
    async with talk(service) as chat:
        await opened(chat)
        await chat.press(*"tiny")
        await chat.until(lambda: len(lines(chat)) == 1)
        assert lines(chat) == [f"{REPO}\n135M · 4,321 downloads a month · llama"]
        await chat.press("enter")
        await chat.until(lambda: any("KV per 1k tokens 375 KiB" in line for line in lines(chat)))
        first, second = lines(chat)
        assert re.match(r"Q8_0 +\d MB  fits\nKV per 1k tokens 375 KiB, cold .* · tiny-Q8_0", first)
        assert second.startswith("F16")
        assert chat.app.screen.query_one(OptionList).highlighted == 0
        await chat.press("enter")
        await chat.until(lambda: service.fetches == [str(FILE)])
        assert chat.app.screen is chat.screen
        assert service.loads == ["scripted"]  # which stays until the other is here
        service.fetched(1, 1)
        await chat.until(lambda: service.loads == ["scripted", str(FILE)])


@on_screen
async def test_what_cannot_be_run_says_so_and_is_not_fetched(hub: FakeHub) -> None:
    hub.told[OTHER] = {"gguf": {"architecture": "nobody-has-heard-of-it"}}
    service = ScriptedService()
    async with talk(service) as chat:
        await opened(chat)
        await chat.press(*"other")
        cannot = "cannot run: architecture nobody-has-heard-of-it"
        await chat.until(lambda: any(cannot in line for line in lines(chat)))
        await chat.press("enter")
        await chat.until(
            lambda: any("cannot run" in each and "Q4_0" in each for each in lines(chat))
        )
        await chat.press("enter")
        await chat.until(lambda: "cannot run: architecture 'nobody-has-heard" in said(chat))
        assert service.fetches == []


@on_screen
async def test_escape_leads_back_to_the_search_then_to_the_models(hub: FakeHub) -> None:
    async with talk() as chat:
        screen = await opened(chat)
        await chat.press(*"tiny")
        await chat.until(lambda: len(lines(chat)) == 1)
        await chat.press("enter")
        await chat.until(lambda: len(lines(chat)) == 2)
        await chat.press("escape")
        await chat.until(lambda: len(lines(chat)) == 1)
        assert chat.app.screen is screen
        assert screen.query_one(Input).value == "tiny"
        await chat.press("escape")
        await chat.until(lambda: isinstance(chat.app.screen, ModelsScreen))


@on_screen
async def test_nothing_is_sent_before_something_is_typed(hub: FakeHub) -> None:
    async with talk() as chat:
        await opened(chat)
        assert "nothing has been sent" in said(chat)
        await chat.press("t")
        await chat.pilot.pause(0.6)
        assert hub.asked == []
        await chat.press(*"iny")
        await chat.until(lambda: len(lines(chat)) == 1)
        assert len(hub.asked) == 1  # once the typing had paused


@on_screen
async def test_errors_are_a_line_of_the_screen(hub: FakeHub) -> None:
    hub.files.clear()
    async with talk() as chat:
        await opened(chat)
        await chat.press(*"tiny")
        await chat.until(lambda: "no GGUF repository whose name holds" in said(chat))
    hub.add(REPO, FILE.file)
    async with talk() as chat:
        await opened(chat)
        await chat.press(*"tiny")
        await chat.until(lambda: len(lines(chat)) == 1)
        hub.files.clear()
        hub.status, hub.code = 403, "GatedRepo"
        await chat.press("enter")
        await chat.until(lambda: "accept its terms on its Hub page" in said(chat))


@on_screen
async def test_the_screen_can_be_left_while_the_hub_says_nothing(hub: FakeHub) -> None:
    hub.silent = "GET"
    async with talk() as chat:
        await opened(chat)
        await chat.press(*"tiny")
        await chat.until(lambda: hub.waiting.is_set() and "searching" in said(chat))
        await chat.press("escape", "escape")
        await chat.until(lambda: chat.app.screen is chat.screen)
