"""A download that a server does not go on with, from outside: `pull` and the chat."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import cli
from app.tui.service.live_service import LiveService
from kvcache import Backend, CacheConfig
from tests.models.finding.hub_server import FakeHub, running_hub

SPEC = "hf:someone/Tiny-GGUF/tiny.gguf"
ROOT = Path(cli.__file__).parent.parent


@pytest.fixture(params=["HEAD", "body"])
def hub(
    request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    """A Hub that falls silent."""
    with running_hub(monkeypatch) as server:
        server.add("someone/Tiny-GGUF", "tiny.gguf")
        server.silent = request.param
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.mark.parametrize("command", [["pull", SPEC], ["run", "--prompt", "x", "-m", SPEC]])
def test_ctrl_c_ends_a_stalled_download(hub: FakeHub, command: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "app", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert hub.waiting.wait(60)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert (out, err) == ("", "ember: interrupted\n")


def test_the_chat_stops_a_stalled_download(hub: FakeHub) -> None:
    service = LiveService(CacheConfig(backend=Backend.REFERENCE))
    try:
        job = service.fetch(SPEC)
        assert hub.waiting.wait(60)
        service.cancel_fetch()
        until = time.monotonic() + 30
        while not job.ended and time.monotonic() < until:
            job.poll()
            time.sleep(0.02)
        assert job.ended
        assert job.error is None
    finally:
        service.close()
