"""Models on the Hub, looked for and looked at before they are here."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import memory
from app.hub_models import costs_of, examine, runs
from app.memory import Memory
from app.model_list import cost_of, listed
from models.finding.choice import ListedFile
from models.finding.hub import HubFile, cached
from models.gguf.file import GGUFFile
from tests.app.conftest import Ember, write_tiny
from tests.models.finding.hub_server import FakeHub, running_hub
from tests.models.gguf.raw_gguf import STRING, RawGGUF, pair, string

REPO = "someone/Tiny-GGUF"
FILE = HubFile(repo=REPO, file="tiny-Q8_0.gguf")
OTHER = "someone/Other-GGUF"


@pytest.fixture
def hub(
    home: Path, tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    monkeypatch.setattr(memory, "memory", lambda: Memory(most=8 << 30, now=8 << 30))
    named = pair("general.architecture", STRING, string("nobody-has-heard-of-it"))
    with running_hub(monkeypatch) as server:
        server.add(REPO, FILE.file, tiny_path.read_bytes())
        server.add(REPO, "tiny-Q4_K_M.gguf", tiny_path.read_bytes() + bytes(512))
        server.add(OTHER, "other-Q4_0.gguf", RawGGUF(pairs=(named,)).encode())
        server.told[REPO] = {"downloads": 4321, "gguf": {"total": 1_500_000_000}}
        yield server


def test_a_header_on_the_hub_says_what_it_says_here(hub: FakeHub, tiny_path: Path) -> None:
    cost = examine(FILE, "Q8_0")
    with GGUFFile(tiny_path) as file:
        assert cost.shape is not None
        assert cost.shape.layers == file.metadata.get_int("llama.block_count")
    assert (cost.problem, cost.weight_bytes) == ("", tiny_path.stat().st_size)
    assert hub.ranges == ["bytes=0-1048575"]


def test_dimensions_behind_a_long_vocabulary_are_found(
    hub: FakeHub, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.hub_models._PARTS", (100, 1 << 20))
    assert examine(FILE, "Q8_0").problem == ""
    assert hub.ranges == ["bytes=0-99", "bytes=0-1048575"]


def test_one_header_is_read_of_each_model(hub: FakeHub) -> None:
    files = [ListedFile(hub=FILE, size=1 << 20), ListedFile(hub=FILE, size=9 << 30)]
    small, large = costs_of(files)
    assert len(hub.gets) == 1
    assert (small.weight_bytes, large.weight_bytes) == (1 << 20, 9 << 30)
    (parts,) = costs_of([ListedFile(hub=FILE, size=1, parts=3)])
    assert "in 3 parts" in parts.problem


def test_which_architectures_run() -> None:
    assert runs("llama")
    assert runs("")  # nobody has told
    assert not runs("nobody-has-heard-of-it")


def test_search_lists_repositories(hub: FakeHub, ember: Ember) -> None:
    hub.told[OTHER] = {"gguf": {"architecture": "nobody-has-heard-of-it"}, "gated": "manual"}
    result = ember("search", "gguf")
    first, second = result.out.splitlines()
    assert first.split() == [REPO, "4,321", "downloads", "1.5B"]
    assert "cannot run: architecture nobody-has-heard-of-it (gated: needs HF_TOKEN)" in second
    assert "ember search OWNER/REPO" in result.err
    found = json.loads(ember("search", "tiny", "--json").out)["repositories"]
    assert found == [
        {
            "name": f"hf:{REPO}",
            "downloads": 4321,
            "parameters": 1_500_000_000,
            "architecture": None,
            "gated": False,
            "runs": None,
        }
    ]


def test_a_search_that_finds_nothing_says_so(hub: FakeHub, ember: Ember) -> None:
    result = ember("search", "no", "such", "words")
    assert (result.code, result.out) == (0, "")
    assert "no GGUF repository whose name holds 'no such words'" in result.err


@pytest.mark.parametrize("name", [REPO, f"hf:{REPO}"])
def test_search_of_a_repository_shows_what_fits(hub: FakeHub, ember: Ember, name: str) -> None:
    result = ember("search", name)
    lines = result.out.splitlines()
    assert [line[:2] for line in lines] == ["  ", "* "]
    assert all("fits; cache per 1k tokens 375 KiB, " in line for line in lines)
    assert f"* is what `ember pull hf:{REPO}` takes" in result.err
    files = json.loads(ember("search", name, "--json").out)["files"]
    taken = [each["name"] for each in files if each["taken"]]
    assert taken == [f"hf:{REPO}/tiny-Q4_K_M.gguf"]
    assert {each["memory"] for each in files} == {"fits"}


def test_search_of_what_cannot_be_run_says_why(hub: FakeHub, ember: Ember) -> None:
    line = ember("search", OTHER).out
    assert "cannot run: architecture 'nobody-has-heard-of-it'" in line


def test_pull_takes_what_fits_and_says_which(hub: FakeHub, ember: Ember) -> None:
    result = ember("pull", f"hf:{REPO}")
    path = cached(HubFile(repo=REPO, file="tiny-Q4_K_M.gguf"))
    assert (result.code, result.out) == (0, f"{path}\n"), result.err
    first, second, third = result.err.splitlines()
    assert "tiny-Q4_K_M.gguf of 2 files is taken" in first
    assert second.startswith("ember: cache per 1k tokens: 375 KiB in f16")
    assert third == "ember: it fits with its whole window of 128 tokens"
    again = ember("pull", f"hf:{REPO}")
    assert (again.out, again.err) == (result.out, "")


def test_pull_downloads_nothing_that_cannot_be_run(hub: FakeHub, ember: Ember) -> None:
    message = ember("pull", f"hf:{OTHER}/other-Q4_0.gguf").error_line()
    assert "cannot run: architecture 'nobody-has-heard-of-it'; nothing was downloaded" in message
    assert cached(HubFile(repo=OTHER, file="other-Q4_0.gguf")) is None


def test_run_fetches_by_quantization_and_finds_it_again(hub: FakeHub, ember: Ember) -> None:
    spec = f"hf:{REPO}:q8_0"
    ask = ("run", "-m", spec, "-p", "x", "--max-tokens", 1, "--raw", "--backend", "reference")
    result = ember(*ask)
    assert result.code == 0, result.err
    assert f"{spec} is tiny-Q8_0.gguf" in result.err
    asked = len(hub.asked) + len(hub.gets)
    assert ember(*ask).out == result.out
    assert len(hub.asked) + len(hub.gets) == asked


def test_what_was_pulled_is_listed_by_the_name_of_its_file(hub: FakeHub, ember: Ember) -> None:
    ember("pull", f"hf:{REPO}:Q8_0")
    (here,) = [each for each in listed() if each.path is not None]
    assert here.spec == str(FILE)
    assert cost_of(here).problem == ""


def test_a_wrong_name_names_what_is_like_it(hub: FakeHub, ember: Ember) -> None:
    hub.status, hub.code = 401, "RepoNotFound"
    message = ember("pull", "hf:someone/Tinny-GGUF").error_line()
    assert "did you mean someone/Tiny-GGUF?" in message


def test_nothing_is_asked_before_the_user_asks(hub: FakeHub, ember: Ember) -> None:
    ember("ls")
    ember("pull", "hf:malformed")
    assert hub.asked + hub.gets == []


def test_write_tiny_has_its_vocabulary_last(tmp_path: Path) -> None:
    """What the first bytes of a header say depends on it, as in files of llama.cpp."""
    with GGUFFile(write_tiny(tmp_path / "t.gguf")) as file:
        names = list(file.metadata)
    assert names.index("llama.block_count") < names.index("tokenizer.ggml.tokens")
