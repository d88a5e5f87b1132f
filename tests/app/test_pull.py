"""A download that a server does not go on with, from outside: `run`, `pull` and the chat."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import cli
from app.service.contract import FetchEvent, Told
from app.service.live_service import LiveService
from kvcache import Backend, CacheConfig
from models.finding.hub import hub_folder
from tests.models.finding.hub_server import FakeHub, running_hub
from tests.patience import patience, wait_until

SPEC = "hf:someone/Tiny-GGUF/tiny.gguf"
SIZE = 3_300_000
ROOT = Path(cli.__file__).parent.parent


@pytest.fixture(params=["HEAD", "body"])
def hub(
    request: pytest.FixtureRequest, home: Path, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    """A Hub that falls silent."""
    with running_hub(monkeypatch) as server:
        server.add("someone/Tiny-GGUF", "tiny.gguf", tiny_path.read_bytes().ljust(SIZE, b"\0"))
        server.silent = request.param
        yield server


def partial_bytes() -> int:
    """How much has come so far."""
    return sum(each.stat().st_size for each in hub_folder().rglob("*.incomplete"))


@pytest.mark.parametrize("command", [["pull", SPEC], ["run", "--prompt", "x", "-m", SPEC]])
def test_ctrl_c_ends_a_stalled_download(hub: FakeHub, command: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "app", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert hub.waiting.wait(patience(60))
    if hub.silent == "body":
        wait_until(lambda: command[0] == "pull" or partial_bytes() > 1_500_000, 30)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=patience(30))
    assert process.returncode == 130, err
    kept = "; 2 MB of 3 MB are kept: the same again goes on there"
    has_begun = command[0] == "run" and hub.silent == "body"
    assert out == ""
    assert err.splitlines()[-1] == f"ember: interrupted{kept if has_begun else ''}"


def test_the_chat_stops_a_stalled_download(hub: FakeHub) -> None:
    service = LiveService(CacheConfig(backend=Backend.REFERENCE))
    try:
        job = service.fetch(SPEC)
        assert hub.waiting.wait(patience(60))
        service.cancel_fetch()
        items: list[FetchEvent] = []

        def ended() -> bool:
            items.extend(job.poll())
            return job.ended

        wait_until(ended, 30)
        assert job.error is None
        told = [each.text for each in items if isinstance(each, Told)]
        assert ["are kept: the same again goes on there" in each for each in told] in ([], [True])
    finally:
        service.close()
