"""`bench wake`: how soon does a chat go on that was kept on disk?

The next answer's first token, from the question to the token: on the live cache, on one that
wakes, live and woken in turns, and read anew. And what it costs to keep it.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np

from app import __version__
from app.bench.meter import Meter
from app.bench.sections.text import text_ids
from app.bench.settings import WakeSettings
from app.engine import Engine, Request
from app.events import TextChunk
from app.wake.folder import PieceFolder
from app.wake.waking import Waking
from kvcache import Backend, CacheConfig, EmberError
from models.loader import load

_ANSWER, _QUESTION = 8, 16
# Tokens of an answer whose seconds are taken, beside a disk that writes and without.
_TIMED = 64
_PATIENCE = 600.0
_BROKEN_OFF = 10  # blocks that a rest has come to when it is broken off
# Expected: to load, a token that is read, one that is drawn, all else of a turn.
_LOADING_SECONDS, _READ_SECONDS, _DRAWN_SECONDS, _TURN_SECONDS = 2.0, 0.0022, 0.009, 0.6


@dataclass(frozen=True, kw_only=True)
class WakeRow:
    """A chat of so many tokens; seconds are medians.

    live_s, woken_s, anew_s: from a question to the first token of its answer. rest_s: to keep
    all of it; step_s: the longest step of that, which a question may have to wait for. p99_s:
    of a token; p99_resting_s: of one that is drawn just after a rest was broken off. disk_bytes:
    of the files; encoded_bytes: that the cache holds.
    """

    model: str
    backend: str
    kv: str
    tokens: int
    live_s: float
    woken_s: float
    anew_s: float
    rest_s: float
    step_s: float
    p99_s: float
    p99_resting_s: float
    disk_bytes: int
    encoded_bytes: int
    reps: int
    settings: str


@dataclass(kw_only=True)
class _Taken:
    """Seconds, as they were taken."""

    live: list[float] = field(default_factory=list)
    woken: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    resting: list[float] = field(default_factory=list)


def expected_seconds(settings: WakeSettings) -> float:
    """Of the whole section."""
    turns = settings.reps * (2 * _TURN_SECONDS + 2 * _TIMED * _DRAWN_SECONDS)
    return _LOADING_SECONDS + 2 * settings.tokens * _READ_SECONDS + turns


def run(settings: WakeSettings, meter: Meter) -> Iterator[WakeRow]:
    """The one row."""
    with meter.step("wake: reading", _LOADING_SECONDS + settings.tokens * _READ_SECONDS):
        loaded = load(settings.model, backend=Backend(settings.backend))
        config = CacheConfig(backend=Backend(settings.backend))
        ids = text_ids(loaded.tokenizer)
        least = settings.tokens + (settings.reps + 1) * _QUESTION
        if len(ids) < least:
            raise EmberError(f"got a text of {len(ids)} tokens, expected at least {least}")
        live = Engine(loaded, config)
        _seconds(live, ids[: settings.tokens], _ANSWER)
        held = live.held()
    questions = [
        [*held, *ids[at : at + _QUESTION]]
        for at in range(settings.tokens, least - _QUESTION, _QUESTION)
    ]
    with tempfile.TemporaryDirectory(prefix="ember-bench-") as folder:
        yield _measured(settings, meter, live, questions, Path(folder))


def _measured(
    settings: WakeSettings, meter: Meter, live: Engine, questions: list[list[int]], folder: Path
) -> WakeRow:
    kept, taken, stats = PieceFolder(folder / "kept"), _Taken(), live.stats()
    with meter.step("wake: resting", _TURN_SECONDS):
        steps = _rest(live, kept)
        disk_bytes = kept.nbytes
    for rep, question in enumerate(questions):
        with meter.step(f"wake: turn {rep + 1}", 2 * _TURN_SECONDS):
            _take_turn(taken, live, question, kept, folder / f"broken {rep}")
    with meter.step("wake: reading anew", settings.tokens * _READ_SECONDS):
        anew = _seconds(_fresh(live), questions[0], 1)[0]
    return WakeRow(
        model=Path(settings.model).stem,
        backend=live.plan.backend.value,
        kv=live.plan.kv,
        tokens=len(questions[0]) - _QUESTION,
        live_s=median(taken.live),
        woken_s=median(taken.woken),
        anew_s=anew,
        rest_s=sum(steps),
        step_s=max(steps),
        p99_s=float(np.quantile(taken.plain, 0.99)),
        p99_resting_s=float(np.quantile(taken.resting, 0.99)),
        disk_bytes=disk_bytes,
        encoded_bytes=stats.sink_bytes + stats.cold_bytes + stats.hot_bytes,
        reps=len(questions),
        settings=f"{__version__}, defaults",
    )


def _take_turn(
    taken: _Taken, live: Engine, question: Sequence[int], kept: PieceFolder, broken: Path
) -> None:
    """The same question to a live cache and to one that wakes, then two longer answers."""
    taken.live.append(_seconds(live, question, 1)[0])
    woken, waking = _fresh(live), Waking(kept)
    began = time.perf_counter()
    if not waking.wake(woken, question):
        raise EmberError("the chat that was kept was not found: this is a fault of ember's own")
    taken.woken.append(time.perf_counter() - began + _seconds(woken, question, 1)[0])
    waking.close(_PATIENCE)
    taken.plain += _seconds(live, question, _TIMED)[1:]
    waking = Waking(PieceFolder(broken))
    resting = waking.rest(live)
    for _ in islice(resting, _BROKEN_OFF * live.plan.shape.layers):
        pass
    resting.close()
    taken.resting += _seconds(live, question, _TIMED)[1:]
    waking.close(_PATIENCE)


def _fresh(engine: Engine) -> Engine:
    """An engine over the same model that holds nothing."""
    return Engine(engine.loaded, engine.plan.config)


def _rest(engine: Engine, folder: PieceFolder) -> list[float]:
    """Keep all that an engine holds; the seconds of each step."""
    waking, steps, at = Waking(folder), list[float](), time.perf_counter()
    for _ in waking.rest(engine):
        now = time.perf_counter()
        steps.append(now - at)
        at = now
    waking.close(_PATIENCE)
    return steps


def _seconds(engine: Engine, prompt: Sequence[int], tokens: int) -> list[float]:
    """Seconds to the first token of an answer, and to each after it."""
    found, at = list[float](), time.perf_counter()
    for event in engine.generate(Request(prompt=prompt, max_tokens=tokens)):
        if isinstance(event, TextChunk):
            found.append(event.at - at)
            at = event.at
    return found
