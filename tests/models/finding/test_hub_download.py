import errno
import hashlib
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from models.errors import FetchError
from models.finding.hub import HubFile, cached, hub_folder
from models.finding.hub_download import download
from models.finding.progress import Progress, silent
from tests.models.finding.hub_server import FakeHub, running_hub
from tests.models.samples import CONTENT, ENTRY, SHA256, put

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


def test_download_fills_the_shared_cache_and_reports(hub: FakeHub) -> None:
    hub.add(WANTED.repo, WANTED.file)
    reports: list[Progress] = []
    path = download(WANTED, reports.append)
    assert path == cached(WANTED)
    assert path.read_bytes() == CONTENT
    size = len(CONTENT)
    labels = (WANTED.file_name, "checking")
    for label in labels:
        assert Progress(done_bytes=size, total_bytes=size, label=label) in reports
    assert reports[-1].label == "checking"


def test_the_furthest_of_several_bars_counts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def transfer(*args: object, tqdm_class: type[Any], **kwargs: object) -> str:
        received, written = (tqdm_class(total=100, initial=7, unit="B") for _ in range(2))
        for bar, count in ((received, 60), (written, 31), (received, 33), (written, 62)):
            bar.update(count)
        return "somewhere"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", transfer)
    reports: list[Progress] = []
    assert download(WANTED, reports.append) == Path("somewhere")
    first, *others = reports
    assert (first.done_bytes, first.total_bytes) == (0, None)
    assert sorted({report.done_bytes for report in others} - {0}) == [67, 100]
    assert {report.total_bytes for report in others} <= {None, 100}


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


@pytest.mark.parametrize("silent_at", ["HEAD", "GET", "body"])
def test_a_download_may_be_stopped_while_the_server_says_nothing(
    hub: FakeHub, silent_at: str
) -> None:
    hub.add(WANTED.repo, WANTED.file)
    hub.silent = silent_at

    def stop(report: Progress) -> None:
        if hub.waiting.is_set():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(WANTED, stop)
    assert cached(WANTED) is None
    hub.released.set()
    until = time.monotonic() + 30
    while list(hub_folder().rglob("*.incomplete")) and time.monotonic() < until:
        time.sleep(0.05)
    assert list(hub_folder().rglob("*.incomplete")) == []
    assert cached(WANTED) is None


@pytest.mark.parametrize("silent_at", ["HEAD", "GET", "body"])
def test_a_server_that_says_nothing_ends_in_one_line(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, silent_at: str
) -> None:
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.05)))
    hub.add(WANTED.repo, WANTED.file)
    hub.silent = silent_at
    began = time.monotonic()
    message = refused()
    assert "has not answered" in message or "broke off" in message
    assert time.monotonic() - began < 30


def test_a_server_that_always_asks_to_wait_ends_in_one_line(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.status, hub.code, hub.headers = 429, "", {"Retry-After": "1000000"}
    message = refused()
    assert "has not answered" in message or "answered 429" in message


@pytest.mark.parametrize("content", [bytes(len(CONTENT)), CONTENT[::-1]])
def test_bytes_of_another_hash_are_refused_and_taken_out(hub: FakeHub, content: bytes) -> None:
    hub.add(WANTED.repo, WANTED.file, content)
    hub.headers["ETag"] = f'"{ENTRY.sha256}"'
    assert f"another hash than {SHA256[:16]}" in refused()
    assert cached(WANTED) is None
    assert [path for path in hub_folder().rglob("blobs/*") if path.is_file()] == []


def test_a_small_file_is_checked_by_its_git_hash(hub: FakeHub) -> None:
    digest = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
    hub.add(WANTED.repo, WANTED.file)
    hub.headers["ETag"] = f'W/"{digest}"'
    hub.add(WANTED.repo, WANTED.file, CONTENT[::-1])
    assert f"another hash than {digest[:16]}" in refused()
    hub.add(WANTED.repo, WANTED.file)
    assert download(WANTED, silent).read_bytes() == CONTENT


def test_the_hash_of_the_linked_file_counts(hub: FakeHub) -> None:
    hub.add(WANTED.repo, WANTED.file)
    hub.headers |= {"X-Linked-Etag": f'"{ENTRY.sha256}"', "ETag": '"of the answer"'}
    assert download(WANTED, silent).resolve().name == ENTRY.sha256


@pytest.mark.parametrize("tag", [{}, {"ETag": '"abc12"'}])
def test_a_repository_that_was_renamed_is_followed(hub: FakeHub, tag: dict[str, str]) -> None:
    hub.add(WANTED.repo, WANTED.file)
    hub.redirect(WANTED.repo, WANTED.file, tag)
    moved = replace(WANTED, file=f"moved-{WANTED.file}")
    assert download(moved, silent).read_bytes() == CONTENT


def test_a_redirection_names_no_folder_outside(hub: FakeHub, home: Path) -> None:
    hub.add(WANTED.repo, WANTED.file)
    hub.redirect(WANTED.repo, WANTED.file, {"ETag": '"../../../../outside"'})
    assert "expected a hash" in refused(replace(WANTED, file=f"moved-{WANTED.file}"))
    assert not list(home.rglob("outside"))


def test_another_hash_than_the_one_known_is_refused_before_the_download(hub: FakeHub) -> None:
    hub.add(WANTED.repo, WANTED.file)
    with pytest.raises(FetchError, match=r"another file.*`ember pull hf:"):
        download(WANTED, silent, sha256="ab" * 32)
    assert hub.gets == []


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("ETag", '"../../../../outside"', "expected a hash"),
        ("ETag", '"/outside"', "expected a hash"),
        ("ETag", '""', "no ETag|expected a hash"),
        ("X-Repo-Commit", "../../../../outside", "expected a commit"),
        ("X-Repo-Commit", "/outside", "expected a commit"),
        ("Content-Length", str(10**15), r"no space left in .*1000000000 MB"),
        ("Content-Length", "9" * 5000, "broke off|bytes"),
        ("X-Linked-Size", "-5", "'-5' bytes"),
        ("X-Linked-Size", str(10**15), "no space left"),
    ],
)
def test_what_a_server_names_stays_inside_and_within_reason(
    hub: FakeHub, home: Path, name: str, value: str, told: str
) -> None:
    hub.add(WANTED.repo, WANTED.file)
    hub.headers[name] = value
    assert re.search(told, refused())
    assert hub.gets == []
    assert not [path for path in home.rglob("*") if path.name in ("outside", WANTED.file)]


def test_a_refusal_names_no_folder_outside(hub: FakeHub, home: Path) -> None:
    hub.headers["X-Repo-Commit"] = "../../../../outside"
    assert refused()
    assert not list(home.rglob("outside"))
