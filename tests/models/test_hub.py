import errno
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from models.errors import FetchError
from models.hub import HubFile, cached, cached_revisions, download, hub_folder
from models.progress import Progress, silent
from tests.models.hub_server import FakeHub, running_hub
from tests.models.samples import COMMIT, CONTENT, ENTRY, OTHER_COMMIT, put, put_hub

WANTED = ENTRY.hub


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running_hub(monkeypatch) as server:
        yield server


def refused(wanted: HubFile = WANTED) -> str:
    with pytest.raises(FetchError) as caught:
        download(wanted, silent)
    message = str(caught.value)
    assert message.startswith(str(wanted))
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("repo", "file", "revision"),
    [
        *(("r", "f", "main"), ("o/r/s", "f", "main"), ("o/..", "f", "main")),
        *(("o/r", "", "main"), ("o/r", "f", ""), ("o/r", "f", "../x")),
    ],
)
def test_malformed_names_are_refused(repo: str, file: str, revision: str) -> None:
    with pytest.raises(ValueError, match="expected hf:OWNER/REPO/FILE"):
        HubFile(repo=repo, file=file, revision=revision)


def test_text_leaves_out_the_usual_revision() -> None:
    wanted = HubFile(repo="o/r", file="d/f.gguf")
    assert str(wanted) == "hf:o/r/d/f.gguf"
    assert str(replace(wanted, revision="v2")) == "hf:o/r/d/f.gguf@v2"
    assert wanted.file_name == "f.gguf"


def test_cache_folder_is_huggingface_hubs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_folder() == home / ".cache/huggingface/hub"
    monkeypatch.setenv("HF_HOME", "~/hf")
    assert hub_folder() == home / "hf/hub"
    monkeypatch.setenv("HF_HUB_CACHE", "$HOME/cache")
    assert hub_folder() == home / "cache"


def test_cached_knows_branches_and_commits(home: Path) -> None:
    assert cached(WANTED) is None
    path = put_hub(hub_folder(), WANTED)
    assert cached(WANTED) == path
    assert cached(replace(WANTED, revision=COMMIT)) == path
    assert cached(replace(WANTED, revision=OTHER_COMMIT)) is None
    (path.resolve()).unlink()
    assert cached(WANTED) is None


def test_cached_revisions_begin_with_the_one_asked_for(home: Path) -> None:
    main = put_hub(hub_folder(), WANTED, OTHER_COMMIT)
    other = put_hub(hub_folder(), replace(WANTED, revision=COMMIT), COMMIT, CONTENT * 2)
    assert list(cached_revisions(WANTED)) == [main, other]
    assert list(cached_revisions(replace(WANTED, repo="o/none"))) == []


def test_download_fills_the_shared_cache_and_reports(hub: FakeHub) -> None:
    hub.add(WANTED.repo, WANTED.file)
    reports: list[Progress] = []
    path = download(WANTED, reports.append)
    assert path == cached(WANTED)
    assert path.read_bytes() == CONTENT
    last = Progress(done_bytes=len(CONTENT), total_bytes=len(CONTENT), label=WANTED.file_name)
    assert reports[-1] == last


def test_the_furthest_of_several_bars_counts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def transfer(*args: object, tqdm_class: type[Any], **kwargs: object) -> str:
        received, written = (tqdm_class(total=100, initial=7, unit="B") for _ in range(2))
        for bar, count in ((received, 60), (written, 31), (received, 33), (written, 62)):
            bar.update(count)
        return "somewhere"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", transfer)
    reports: list[Progress] = []
    assert download(WANTED, reports.append) == Path("somewhere")
    assert [report.done_bytes for report in reports] == [67, 67, 100, 100]
    assert {report.total_bytes for report in reports} == {100}


def test_download_draws_no_bar(
    hub: FakeHub, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQDM_POSITION", "-1")  # makes huggingface_hub draw without a terminal
    hub.add(WANTED.repo, WANTED.file)
    download(WANTED, silent)
    assert "tiny" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("status", "code", "cause"),
    [
        (404, "EntryNotFound", "has no file tiny.Q4_1.gguf"),
        (404, "RevisionNotFound", "has no revision 'main'"),
        (404, "RepoNotFound", "has no repository someone/Tiny-GGUF"),
        (401, "RepoNotFound", "or it is private"),
        (403, "GatedRepo", "accept its terms on its Hub page"),
    ],
)
def test_refusals_of_the_hub_say_what_to_do(
    hub: FakeHub, status: int, code: str, cause: str
) -> None:
    hub.status, hub.code = status, code
    assert cause in refused()


def test_a_name_that_no_repository_can_have(home: Path) -> None:
    assert "not a repository name" in refused(replace(WANTED, repo="some one/Tiny"))


def test_a_hub_that_does_not_answer(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_hub(monkeypatch):
        pass
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert "check the network connection" in refused()


def test_offline_mode_is_named(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refused()


def test_a_download_that_breaks_off_leaves_nothing(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(WANTED.repo, WANTED.file)
    hub.cut = 1000
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert "run it again" in refused()
    assert cached(WANTED) is None
    assert [path for path in hub_folder().rglob("*.incomplete") if path.is_file()] == []


def test_a_cache_that_cannot_be_written(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(WANTED.repo, WANTED.file)
    monkeypatch.setenv("HF_HUB_CACHE", str(put(hub_folder())))
    message = refused()
    assert "cannot write to" in message
    assert "set HF_HOME" in message


def test_a_full_disk(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    assert "no space left in" in refused()


def test_a_fast_transfer_that_fails(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> str:
        raise RuntimeError("Data processing error: CAS service error")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    assert "HF_HUB_DISABLE_XET=1" in refused()


def test_progress_may_stop_the_download(hub: FakeHub) -> None:
    hub.add(WANTED.repo, WANTED.file)

    def stop(report: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(WANTED, stop)
    assert cached(WANTED) is None
