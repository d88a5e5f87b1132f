"""Cases of `bench speed`, and measurements that are made up."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from app.bench.engines import tuning
from app.bench.engines.case import Case, EngineName, Measurement, Setting
from app.bench.meter import Meter
from app.bench.sections import speed
from app.bench.settings import SpeedSettings

SETTINGS = SpeedSettings(
    model="/models/m.gguf",
    kv=("f16",),
    backend="cpu",
    threads=2,
    depths=(0, 100),
    pp=512,
    tg=3,
    reps=2,
)
CASE = speed.cases(SETTINGS, 100)[0]


class Steps(Meter):
    """Keeps the labels, shows nothing."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    @contextlib.contextmanager
    def step(self, label: str, seconds: float) -> Iterator[None]:
        assert seconds > 0
        self.labels.append(label)
        yield


def measurement(pp_s: float, *token_s: float) -> Measurement:
    return Measurement(
        backend="cpu",
        threads=2,
        pp_s=pp_s,
        token_s=token_s,
        kv_bytes=1230,
        peak_rss_bytes=int(pp_s * 1e6),
    )


def tiny_case(path: Path, engine: EngineName, kv: str, **more: int) -> Case:
    sizes = {"threads": 1, "depth": 3, "pp": 7, "tg": 4} | more
    return Case(engine=engine, model=str(path), kv=kv, backend="auto", **sizes)


def alike(case: Case, settings: Sequence[Setting]) -> dict[Setting, Measurement]:
    """A trial in which no setting is better than another."""
    return {setting: measurement(1.0, *[0.1] * case.tg) for setting in settings}


def peer_case(path: Path, engine: EngineName, kv: str, **more: int) -> Case:
    case = tiny_case(path, engine, kv, **more)
    return replace(case, setting=tuning.settings_of(case, on_cpu=True)[0])
