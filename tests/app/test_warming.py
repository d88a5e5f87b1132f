"""The GPU kernels' warm-up as a user meets it, with one that only tells its steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app import cli, session
from app.engine import Engine
from app.service.contract import ModelInfo
from app.service.live_service import LiveService
from kvcache import Backend, CacheConfig, CachePlan
from models import load
from models.finding.progress import Progress

CONFIG = CacheConfig(backend=Backend.REFERENCE)


@pytest.fixture
def warmed(monkeypatch: pytest.MonkeyPatch) -> list[CachePlan]:
    """The plans that were warmed up, each in three steps."""
    plans: list[CachePlan] = []

    def warm_up(
        plan: CachePlan, *, progress: Callable[[int, int], None] | None, **_: Any
    ) -> CachePlan:
        plans.append(plan)
        for done in range(4):
            if progress:
                progress(done, 3)
        return plan.on_reference("here is none")

    monkeypatch.setattr("app.engine.warm_up", warm_up)
    return plans


def test_it_is_once_for_an_engine(tiny_path: Path, warmed: list[CachePlan]) -> None:
    """Pinning another number of tokens needs no other kernel."""
    engine = Engine(load(tiny_path, backend=Backend.REFERENCE), CONFIG)
    engine.keep(9)
    assert engine.plan.sizes.pinned == 9
    assert engine.plan.reference_because == "here is none"
    assert len(warmed) == 1


def test_the_chat_tells_its_steps(tiny_path: Path, warmed: list[CachePlan]) -> None:
    service = LiveService(CONFIG)
    events = list(service.load(str(tiny_path)))
    service.close()
    labels = [each.label for each in events if isinstance(each, Progress)]
    assert labels[-4:] == [f"compiling the GPU kernels, step {done} of 3" for done in range(4)]
    assert isinstance(events[-1], ModelInfo)
    assert len(warmed) == 1


def test_a_long_one_is_told(
    tiny_path: Path,
    warmed: list[CachePlan],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["run", "--raw", "-p", "ba", "--max-tokens", "1", "-m", str(tiny_path)]
    for longest, told in ((1e9, False), (-1.0, True)):
        monkeypatch.setattr(session, "_LONG_WARM_UP", longest)
        assert cli.run([*command, "--backend", "reference"]) == 0
        err = capsys.readouterr().err
        assert ("comparing them with plain MLX took 0 s of this load" in err) is told
    assert len(warmed) == 2
