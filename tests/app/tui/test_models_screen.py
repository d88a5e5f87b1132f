"""The list of models, and downloads."""

from dataclasses import replace
from pathlib import Path

import pytest
from textual.widgets import OptionList

from app import units
from app.service.contract import Told
from app.tui.screens.models import ModelsScreen
from app.tui.widgets.status_line import StatusLine
from models.finding.store import models_folder
from tests.app.service.scripted_service import ScriptedService
from tests.app.tui.conftest import (
    on_screen,
    talk,
)
from tests.models.gguf.raw_gguf import STRING, RawGGUF, pair, string
from tests.models.samples import ENTRY


@on_screen
async def test_the_model_picker_shows_costs_and_switches(tiny_path: Path) -> None:
    folder = models_folder()
    folder.mkdir(parents=True)
    (folder / "tiny.gguf").symlink_to(tiny_path)
    (folder / "broken.gguf").write_bytes(b"GGUF")
    named = pair("general.architecture", STRING, string("nobody-has-heard-of-it"))
    (folder / "other.gguf").write_bytes(RawGGUF(pairs=(named,)).encode())
    async with talk() as chat:
        await chat.exchange("one", "1")
        await chat.press("ctrl+l")
        screen = chat.app.screen
        assert isinstance(screen, ModelsScreen)
        chooser = screen.query_one(OptionList)

        def lines() -> list[str]:
            return [str(each.prompt) for each in chooser.options]

        def tinys() -> list[int]:
            return [at for at, line in enumerate(lines()) if "ember:tiny.gguf" in line]

        # Files are read one after the other, and each line is filled in when its file was.
        await chat.until(lambda: any("KV per 1k tokens 375 KiB" in lines()[at] for at in tinys()))
        (other,) = [line for line in lines() if "other.gguf" in line]
        size = (folder / "other.gguf").stat().st_size
        assert other.endswith("other.gguf · cannot run: architecture 'nobody-has-heard-of-it'")
        assert other.splitlines()[0].endswith(f"  {units.file_size(size)} ")
        (tiny,) = tinys()
        assert "cold " in lines()[tiny]
        assert lines()[tiny].startswith("random weights · Q8_0  ")
        assert " fits\n" in lines()[tiny]
        (fetchable,) = [line for line in lines() if "smollm2-360m" in line]
        assert "SmolLM2 360M Instruct · Q4_K_M  271 MB fits · to fetch" in fetchable
        assert "KV per 1k tokens 39.1 MiB, cold " in fetchable
        assert fetchable.endswith("smollm2-360m · small and quick")
        await chat.choose(tiny)
        await chat.until(lambda: chat.service.loads[-1] == "ember:tiny.gguf")
        assert chat.texts == ["one", "1"]
        await chat.until(lambda: not chat.app.chat.busy)
        assert chat.app.chat.chat.model == "ember:tiny.gguf"


@on_screen
async def test_the_model_picker_makes_up_no_size(monkeypatch: pytest.MonkeyPatch) -> None:
    untold = replace(ENTRY, size=None, sha256=None)
    monkeypatch.setattr("app.model_list.CATALOGUE", (untold,))
    async with talk() as chat:
        await chat.press("ctrl+l")
        chooser = chat.app.screen.query_one(OptionList)
        await chat.until(lambda: bool(chooser.options))
        (line,) = [str(each.prompt) for each in chooser.options if "tiny" in str(each.prompt)]
        assert line.splitlines()[0] == "a test's own model · Q4_1  size unknown · to fetch"


@on_screen
async def test_a_download_says_what_was_chosen_and_how_long_it_takes() -> None:
    service = ScriptedService(missing=["hf:o/r"])
    async with talk(service) as chat:
        await chat.type("/model hf:o/r")
        await chat.until(lambda: service.fetches == ["hf:o/r"])
        assert service.fetch_job is not None
        service.fetch_job.put(Told(text="Q4_K_M of 3 files is taken"))
        await chat.until(lambda: "Q4_K_M of 3 files is taken" in chat.told)
        service.fetched(50_000_000, 200_000_000)
        status = chat.screen.query_one(StatusLine)
        await chat.until(lambda: "50 MB of 200 MB" in str(status.render()))
        service.fetched(60_000_000, 200_000_000)
        await chat.until(lambda: " MB/s, " in str(status.render()))
        assert " left · Esc stops" in str(status.render())


@on_screen
async def test_a_download_shows_its_progress_and_can_be_stopped() -> None:
    service = ScriptedService(missing=["smollm2-360m"])
    async with talk(service) as chat:
        await chat.type("/model smollm2-360m")
        await chat.until(lambda: service.fetches == ["smollm2-360m"])
        service.fetched(50_000_000, 200_000_000)
        status = chat.screen.query_one(StatusLine)
        await chat.until(lambda: "50 MB of 200 MB · Esc stops" in str(status.render()))
        await chat.press("ctrl+l")
        line = chat.app.screen.query_one("#download")
        await chat.until(lambda: "50 MB of 200 MB" in str(line.render()) and line.display)
        await chat.press("f8")
        await chat.until(lambda: chat.app.chat.models.fetching is None)
        assert service.loads == ["scripted"]
