"""One engine that answers again and again, far beyond its window, and what it costs meanwhile."""

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from threading import Event as Flag

import numpy as np
import psutil

from app.engine import Engine, Request
from app.events import Finished
from app.sampling import Sampling
from kvcache import CacheConfig
from models import load

WINDOW = 256
_PROMPT, _ANSWER = 40, 700
# Memory that allocators and Python still take while a process becomes warm.
_NOISE = 6 << 20
_LEAST_ROUNDS = 20
# Fewer tell nothing of the pace, beside other work.
_PACED_ROUNDS, _MOST_PACE = 200, 1.05


@dataclass(frozen=True, kw_only=True)
class Soaked:
    """tokens: of answers. pace: what a token costs in the last tenth of rounds to what it costs in
    the first, in processor time as multiples of `_yardstick` beside it, so that a machine which
    changes its speed is not seen. grown: bytes by which resident memory grew from the first third
    to the last, their medians. cache: the least and most bytes that caches took, once filled."""

    tokens: int
    rounds: int
    pace: float
    grown: int
    cache: tuple[int, int]

    @property
    def has_grown(self) -> bool:
        """More than noise."""
        return self.grown > _NOISE or self.cache[0] != self.cache[1]

    @property
    def has_slowed(self) -> bool:
        """More than noise."""
        return self.rounds >= _PACED_ROUNDS and self.pace > _MOST_PACE

    def __str__(self) -> str:
        return (
            f"{self.tokens:,} tokens in {self.rounds} answers: memory {self.grown / 2**20:+.1f} "
            f"MiB, cache {self.cache[1]:,} bytes throughout: {self.cache[0] == self.cache[1]}, "
            f"pace {self.pace:.2f}"
        )


def soak(model: Path, *, seconds: float, rounds: int | None = None) -> Soaked:
    """Answer drawn tokens to prompts of random ones, for so long, or so many times.

    Raises EmberError where the network gives what is not finite.
    """
    engine = Engine(load(model), CacheConfig(max_tokens=WINDOW, hot=32, sinks=4))
    rng, process = np.random.default_rng(1), psutil.Process()
    resident, paces, held = list[int](), list[float](), list[int]()
    deadline, tokens = time.monotonic() + seconds, 0
    while len(paces) < _LEAST_ROUNDS or (
        time.monotonic() < deadline if rounds is None else len(paces) < rounds
    ):
        prompt = rng.integers(3, engine.loaded.tokenizer.vocab_size, _PROMPT).tolist()
        sampling = Sampling(temperature=0.9, seed=len(paces))
        request = Request(prompt=prompt, max_tokens=_ANSWER, sampling=sampling)
        before = _yardstick()
        began = time.process_time()
        *_, last = engine.generate(request, Flag())
        took = time.process_time() - began
        assert isinstance(last, Finished)
        made = len(last.completion.tokens)
        paces.append(took / max(1, made) / (before + _yardstick()))
        tokens += made
        resident.append(process.memory_info().rss)
        held.append(engine.stats().allocated_bytes)
    third, tenth = len(resident) // 3, max(1, len(paces) // 10)
    filled = held[1:]
    return Soaked(
        tokens=tokens,
        rounds=len(paces),
        pace=median(paces[-tenth:]) / median(paces[1 : 1 + tenth]),
        grown=int(median(resident[-third:]) - median(resident[third : 2 * third])),
        cache=(min(filled), max(filled)),
    )


def _yardstick() -> float:
    """Processor seconds of work that is always the same: of Python, and of arrays."""
    began = time.process_time()
    values = np.ones((64, 64), np.float32)
    for _ in range(2_000):
        values = values * 0.5 + 1.0
    return time.process_time() - began
