from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from models.errors import FetchError
from models.finding.fetch import fetch
from models.finding.hub import HubFile, HubModel
from models.finding.hub_listing import FoundRepo, beginning, listing, search
from models.finding.progress import Progress
from tests.models.finding.hub_server import FakeHub, running_hub
from tests.models.samples import CONTENT, SHA256

REPO = "someone/Tiny-GGUF"
MODEL = HubModel(repo=REPO)


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running_hub(monkeypatch) as server:
        server.add(REPO, "tiny.Q8_0.gguf", CONTENT * 2)
        server.add(REPO, "tiny.Q4_K_M.gguf")
        server.add(REPO, "mmproj-tiny.gguf")
        server.add("other/thing", "thing-Q4_0.gguf")
        yield server


def test_a_search_gives_what_the_hub_tells(hub: FakeHub) -> None:
    told = {"total": 135_000_000, "architecture": "llama"}
    hub.told[REPO] = {"downloads": 1234, "gguf": told, "gated": "auto"}
    assert search("tiny") == [
        FoundRepo(
            repo=REPO, downloads=1234, parameters=135_000_000, architecture="llama", gated=True
        )
    ]
    assert search("thing") == [FoundRepo(repo="other/thing", downloads=0)]
    assert search("nobody has this") == []
    assert "filter=gguf" in hub.asked[0]
    assert "sort=downloads" in hub.asked[0]
    assert len(hub.asked) == 3


def test_what_the_hub_tells_is_not_believed_blindly(hub: FakeHub) -> None:
    hub.told[REPO] = {"downloads": "many", "gguf": {"total": -1, "architecture": 5}}
    assert search("tiny") == [FoundRepo(repo=REPO, downloads=0)]
    hub.told[REPO] = {"gguf": "llama", "id": "../../outside/x"}
    assert search("tiny") == []


@pytest.mark.parametrize(
    ("count", "text"), [(135_000_000, "135M"), (8_030_000_000, "8.0B"), (None, "")]
)
def test_parameters_are_said_as_people_do(count: int | None, text: str) -> None:
    assert FoundRepo(repo="o/r", downloads=0, parameters=count).parameters_text == text


def test_a_repositorys_models_are_listed_the_best_first(hub: FakeHub) -> None:
    first, second = listing(MODEL)
    assert first.hub == HubFile(repo=REPO, file="tiny.Q4_K_M.gguf")
    assert (first.size, first.sha256) == (len(CONTENT), SHA256)
    assert second.hub.file == "tiny.Q8_0.gguf"


def test_names_that_lead_elsewhere_are_left_out(hub: FakeHub) -> None:
    hub.add(REPO, "../../../outside.gguf")
    assert len(listing(MODEL)) == 2


@pytest.mark.parametrize("has_ranges", [True, False])
def test_of_a_files_beginning_no_more_is_read(hub: FakeHub, has_ranges: bool) -> None:
    hub.has_ranges = has_ranges
    begun = beginning(HubFile(repo=REPO, file="tiny.Q8_0.gguf"), 100)
    assert (begun.data, begun.size) == (CONTENT[:100], 2 * len(CONTENT))
    assert hub.ranges == ["bytes=0-99"]


@pytest.mark.parametrize(
    ("status", "code", "cause"),
    [
        (401, "RepoNotFound", "did you mean someone/Tiny-GGUF? "),
        (404, "", "did you mean someone/Tiny-GGUF? "),
        (404, "RevisionNotFound", "has no revision 'main'"),
        (403, "GatedRepo", "accept its terms on its Hub page, then set HF_TOKEN"),
        (401, "", "HF_TOKEN"),
        (429, "", "answered 429"),
    ],
)
def test_refusals_say_what_to_do(hub: FakeHub, status: int, code: str, cause: str) -> None:
    hub.status, hub.code = status, code
    with pytest.raises(FetchError) as caught:
        listing(HubModel(repo="someone/Tiny-GGUFF"))
    message = str(caught.value)
    assert message.startswith("hf:someone/Tiny-GGUFF: ")
    assert cause in message
    assert "\n" not in message


def test_no_network_is_one_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_hub(monkeypatch):
        pass
    for ask in (lambda: search("tiny"), lambda: listing(MODEL)):
        with pytest.raises(FetchError, match="check the network connection"):
            ask()


def test_offline_mode_is_named(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FetchError, match="HF_HUB_OFFLINE"):
        listing(MODEL)
    assert hub.asked == []


def test_a_question_can_be_left(hub: FakeHub) -> None:
    hub.silent = "GET"

    def leave(_progress: Progress) -> None:
        if hub.waiting.is_set():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search("tiny", leave)


def test_the_file_that_fits_is_fetched_and_said(hub: FakeHub) -> None:
    said: list[str] = []
    path = fetch(f"hf:{REPO}", chosen=lambda choice: said.append(choice.because))
    assert path.name == "tiny.Q4_K_M.gguf"
    assert len(said) == 1
    assert "tiny.Q4_K_M.gguf of 2 files is taken" in said[0]
    asked = len(hub.asked)
    assert fetch(f"hf:{REPO}") == fetch(f"hf:{REPO}:q4_k_m") == path
    assert len(hub.asked) == asked
    assert fetch(f"hf:{REPO}:q8_0").name == "tiny.Q8_0.gguf"


def test_a_file_is_held_to_the_hash_of_the_listing(hub: FakeHub) -> None:
    hub.headers["ETag"] = f'"{"ab" * 32}"'
    with pytest.raises(FetchError, match="another file than the one ember knows"):
        fetch(f"hf:{REPO}")
