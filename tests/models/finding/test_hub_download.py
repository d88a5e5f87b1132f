import errno
import fcntl
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import huggingface_hub
import pytest

from models.errors import FetchError
from models.finding.hub import HubFile, cached, hub_folder, repo_folder
from models.finding.hub_download import download
from models.finding.progress import Progress, silent
from tests.models.finding.hub_server import FakeHub, running_hub
from tests.models.samples import CONTENT, ENTRY, SHA256, put
from tests.patience import patience

WANTED = ENTRY.hub


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with running_hub(monkeypatch) as server:
        yield server


def begun() -> Path:
    """Where the bytes of `CONTENT` stand until all are there."""
    return repo_folder(WANTED.repo) / "blobs" / f"{SHA256}.ember.incomplete"


def partials() -> list[Path]:
    return list(hub_folder().rglob("*.incomplete"))


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


@pytest.mark.parametrize(
    ("status", "code", "cause"),
    [
        (404, "EntryNotFound", "has no file tiny.Q4_1.gguf"),
        (404, "RevisionNotFound", "has no revision 'main'"),
        (404, "RepoNotFound", "has no repository someone/Tiny-GGUF"),
        (401, "RepoNotFound", "or it is private"),
        (403, "GatedRepo", "accept its terms on its Hub page, then set HF_TOKEN"),
        (401, "", "set HF_TOKEN"),
        (403, "", "set HF_TOKEN"),
        (400, "", "answered 400"),
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


def test_a_download_that_breaks_off_goes_on_by_itself(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.add(WANTED.repo, WANTED.file)
    hub.cut = 1000
    assert download(WANTED, silent).read_bytes() == CONTENT
    assert hub.ranges == ["", "bytes=1000-", "bytes=2000-", "bytes=3000-"]
    assert partials() == []


def test_a_server_that_is_busy_is_asked_again(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.add(WANTED.repo, WANTED.file)
    hub.busy = 3
    assert download(WANTED, silent).read_bytes() == CONTENT


def test_where_nothing_comes_any_more_what_has_come_is_kept(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.add(WANTED.repo, WANTED.file)
    partial = put(begun(), CONTENT[:1000])
    hub.cut = 0
    with pytest.raises(FetchError, match=r"broke off .*it goes on there") as caught:
        download(WANTED, silent)
    assert caught.value.__notes__ == ["0 MB of 0 MB are kept: the same again goes on there"]
    assert partial.read_bytes() == CONTENT[:1000]
    assert cached(WANTED) is None
    hub.cut = None
    assert download(WANTED, silent).read_bytes() == CONTENT
    assert hub.ranges[-1] == "bytes=1000-"


def test_a_server_without_ranges_sends_all(hub: FakeHub) -> None:
    hub.add(WANTED.repo, WANTED.file)
    hub.has_ranges = False
    put(begun(), CONTENT[:1000])
    assert download(WANTED, silent).read_bytes() == CONTENT
    assert hub.ranges == ["bytes=1000-"]


@pytest.mark.parametrize(
    "damage", [CONTENT[:99] + b"x" + CONTENT[100:999], CONTENT + b"more", bytes(len(CONTENT))]
)
def test_what_was_begun_with_other_bytes_is_begun_anew(hub: FakeHub, damage: bytes) -> None:
    hub.add(WANTED.repo, WANTED.file)
    put(begun(), damage)
    path = download(WANTED, silent)
    assert path.read_bytes() == CONTENT
    assert hub.ranges[-1] == ""
    assert partials() == []


def test_a_file_that_is_another_by_now_is_not_gone_on_with(hub: FakeHub) -> None:
    other = CONTENT[::-1] * 2
    hub.add(WANTED.repo, WANTED.file, other)
    partial = put(begun(), CONTENT[:1000])
    assert download(WANTED, silent).read_bytes() == other
    assert hub.ranges == [""]
    assert partial.exists()  # the old file may come back


def test_what_was_begun_long_ago_is_taken_away(hub: FakeHub) -> None:
    hub.add(WANTED.repo, WANTED.file, CONTENT[::-1])
    partial = put(begun(), CONTENT[:1000])
    os.utime(partial, (0, 0))
    download(WANTED, silent)
    assert partials() == []


def test_another_part_than_the_one_asked_for_is_not_appended(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.add(WANTED.repo, WANTED.file)
    hub.headers["Content-Range"] = f"bytes 7-{len(CONTENT) - 1}/{len(CONTENT)}"
    put(begun(), CONTENT[:1000])
    assert download(WANTED, silent).read_bytes() == CONTENT
    assert hub.ranges == ["bytes=1000-", ""]


def test_no_more_is_taken_than_was_stated(hub: FakeHub) -> None:
    hub.add(WANTED.repo, WANTED.file)
    hub.headers["X-Linked-Size"] = "1000"
    assert "sends more than the 1000 bytes" in refused()
    assert sum(path.stat().st_size for path in partials()) <= 1000


def test_a_disk_must_hold_only_what_is_missing(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(WANTED.repo, WANTED.file)
    free = SimpleNamespace(free=len(CONTENT) - 500)
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)
    assert "no space left in" in refused()
    assert hub.gets == []
    put(begun(), CONTENT[:1000])
    assert download(WANTED, silent).read_bytes() == CONTENT


def test_a_file_that_is_too_large_for_http_is_left_to_the_hubs_program(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(WANTED.repo, WANTED.file)
    monkeypatch.setattr(huggingface_hub.constants, "MAX_HTTP_DOWNLOAD_SIZE", 1000)
    assert f"`hf download {WANTED.repo} {WANTED.file}`" in refused()


def test_who_comes_second_waits_and_finds_the_file(hub: FakeHub) -> None:
    hub.add(WANTED.repo, WANTED.file)
    partial = put(begun(), CONTENT[:1000])
    with partial.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        labels: list[str] = []

        def report(progress: Progress) -> None:
            labels.append(progress.label)
            # Called again and again, also once the one who waited has a new partial file.
            if "by another program" in progress.label and not partial.with_name(SHA256).exists():
                file.seek(0)
                file.write(CONTENT)
                file.flush()
                partial.replace(partial.with_name(SHA256))
                fcntl.flock(file, fcntl.LOCK_UN)

        assert download(WANTED, report).read_bytes() == CONTENT
    assert "tiny.Q4_1.gguf (by another program)" in labels
    assert hub.gets == []
    assert partials() == []


FETCH = "import sys; from models.finding.fetch import fetch; print(fetch(sys.argv[1]))"


def process() -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", FETCH, str(WANTED)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_download_that_was_killed_goes_on(hub: FakeHub) -> None:
    content = CONTENT * 300
    hub.add(WANTED.repo, WANTED.file, content)
    for _ in range(3):
        hub.silent = "body"
        hub.waiting.clear()
        with process() as killed:
            assert hub.waiting.wait(patience(60))
            until = time.monotonic() + patience(30)
            while not partials() or not partials()[0].stat().st_size:
                assert time.monotonic() < until
                time.sleep(0.02)
            killed.send_signal(signal.SIGKILL)
        assert cached(WANTED) is None
    hub.silent = ""
    with process() as last:
        out, err = last.communicate(timeout=patience(60))
    assert Path(out.strip()).read_bytes() == content, err
    begins = [int(each.partition("=")[2].rstrip("-") or 0) for each in hub.ranges]
    assert begins == sorted(begins)
    assert begins[-1] > 0
    assert partials() == []


def test_two_programs_fetch_a_file_once(hub: FakeHub) -> None:
    content = CONTENT * 300
    hub.add(WANTED.repo, WANTED.file, content)
    with process() as one, process() as two:
        outs = [each.communicate(timeout=patience(60)) for each in (one, two)]
    assert {Path(out.strip()).read_bytes() for out, _ in outs} == {content}, outs
    assert len(hub.gets) == 1


def test_a_cache_that_cannot_be_written(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(WANTED.repo, WANTED.file)
    monkeypatch.setenv("HF_HUB_CACHE", str(put(hub_folder())))
    message = refused()
    assert "cannot write to" in message
    assert "set HF_HOME" in message


def test_a_full_disk_keeps_what_it_holds(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(WANTED.repo, WANTED.file)

    def full(_wanted: HubFile, _commit: str, file: BinaryIO, *_more: object) -> None:
        file.write(CONTENT[:1000])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("models.finding.hub_download.receive", full)
        assert "no space left in" in refused()
    assert download(WANTED, silent).read_bytes() == CONTENT
    assert hub.ranges == ["bytes=1000-"]


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
    hub.silent = ""
    assert download(WANTED, silent).read_bytes() == CONTENT
    assert hub.ranges[-1] == (f"bytes={len(CONTENT) // 2}-" if silent_at == "body" else "")


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
    path = download(replace(WANTED, file=f"moved-{WANTED.file}"), silent)
    assert path.resolve().name == SHA256
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
        ("Content-Length", "9" * 5000, "cannot be reached|makes no sense"),
        ("X-Linked-Size", "-5", "-5 bytes"),
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
