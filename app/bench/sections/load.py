"""`bench load`: how soon a model answers, and what it takes of the memory.

Every start is a process of its own, engines in turns. One start before is not counted: it
brings the file into the system's cache, from which the others load.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil

from app import __version__
from app.bench.engines.case import EngineName
from app.bench.engines.process import environment
from app.bench.engines.start import Started
from app.bench.environment import version_of
from app.bench.meter import Meter
from app.bench.sections.speed_rows import PACKAGES
from app.bench.settings import LoadSettings
from app.console import note
from kvcache.errors import EmberError

# Expected: seconds to start, and bytes read the first time in a second.
_START = 1.5
_DISK = 3e8


@dataclass(frozen=True, kw_only=True)
class LoadRow:
    """One engine's starts: medians, of memory the most.

    load_s: from a path to a model, in a process that has imported all. first_token_s: from the
    start of a process to the first token of an answer; of ember's, `ember run`.
    kv_bytes: what the cache has allocated by then, part of the peak.
    second_bytes: of a second process beside the first, what it does not share with that.
    """

    engine: str
    model: str
    backend: str
    threads: int
    file_bytes: int
    load_s: float
    first_token_s: float
    peak_rss_bytes: int
    kv_bytes: int
    second_bytes: int
    reps: int
    settings: str


@dataclass(kw_only=True)
class _Starts:
    """What the starts of one engine gave. seconds: to the first token."""

    engine: EngineName
    found: list[Started] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    second_bytes: int = 0


def expected_seconds(settings: LoadSettings) -> float:
    """Of the whole section."""
    reading = Path(settings.model).stat().st_size / _DISK
    return reading + len(_engines(settings)) * (settings.reps + 2) * 2 * _START


def run(settings: LoadSettings, meter: Meter) -> Iterator[LoadRow]:
    """A row for each engine. Raises EmberError where ember does not start."""
    starts = [_Starts(engine=engine) for engine in _engines(settings)]
    for rep in range(settings.reps + 1):
        for one in list(starts):
            what = f"start {rep}" if rep else "start to warm up"
            with meter.step(f"load: {one.engine.value}, {what}", 2 * _START):
                try:
                    _start(one, settings, counts=rep > 0, last=rep == settings.reps)
                except EmberError as error:
                    if one.engine is EngineName.EMBER:
                        raise
                    note(f"{one.engine.value} left out: {error}")
                    starts.remove(one)
    yield from (_row(one, settings) for one in starts)


def _engines(settings: LoadSettings) -> Sequence[EngineName]:
    return [EngineName.EMBER, *([EngineName.LLAMA_CPP] if settings.peers else [])]


def _start(one: _Starts, settings: LoadSettings, *, counts: bool, last: bool) -> None:
    """Start a process, and after the last one a second beside it."""
    began = time.perf_counter()
    with _started(one.engine, settings) as (_, first):
        seconds = time.perf_counter() - began
        if last:
            with _started(one.engine, settings) as (process, _):
                one.second_bytes = int(psutil.Process(process).memory_full_info().uss)
    if one.engine is EngineName.EMBER:
        seconds = _seconds_of_run(settings)
    if counts:
        one.found.append(first)
        one.seconds.append(seconds)


@contextmanager
def _started(engine: EngineName, settings: LoadSettings) -> Iterator[tuple[int, Started]]:
    """A process that holds a model, by its id, and what it says of its start.

    Raises EmberError with its last line.
    """
    arguments = [engine.value, settings.model, settings.backend, str(settings.threads)]
    process = subprocess.Popen(
        [sys.executable, "-m", "app.bench.engines.start", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(settings.threads),
    )
    with process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if line:
            yield process.pid, Started(**json.loads(line))
            return
        _, told = process.communicate()
        lines = told.strip().splitlines() or [f"exit code {process.returncode}"]
        raise EmberError(f"{engine.value} does not start: {lines[-1]}")


def _seconds_of_run(settings: LoadSettings) -> float:
    """From the start of `ember run` to the first byte of its answer."""
    flags = ["-m", settings.model, "--backend", settings.backend, "--prompt", "hi"]
    command = [sys.executable, "-m", "app", "run", *flags, "--max-tokens", "1"]
    began = time.perf_counter()
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(settings.threads),
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        seconds = time.perf_counter() - began
        process.stdout.read()
    if process.returncode:
        raise EmberError(f"`ember run` failed with exit code {process.returncode}")
    return seconds


def _row(one: _Starts, settings: LoadSettings) -> LoadRow:
    first = one.found[0]
    package, _ = PACKAGES.get(one.engine, ("", ""))
    return LoadRow(
        engine=one.engine.value,
        model=Path(settings.model).stem,
        backend=first.backend,
        threads=first.threads,
        file_bytes=Path(settings.model).stat().st_size,
        load_s=median(each.load_s for each in one.found),
        first_token_s=median(one.seconds),
        peak_rss_bytes=max(each.peak_rss_bytes for each in one.found),
        kv_bytes=first.kv_bytes,
        second_bytes=one.second_bytes,
        reps=len(one.found),
        settings=f"{package} {version_of(package)}" if package else f"{__version__}, defaults",
    )
