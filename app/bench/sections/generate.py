"""Generates tokens three ways and times each step: no cache, an f16 cache, two tiers.

Runs the loaded model in this process; knows nothing of claims.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import mlx.core as mx
import numpy as np

from app.engine import PREFILL_STEP
from kvcache import Backend, CacheConfig, TwoTierKVCache, make_prompt_cache
from models.network.llama import Model

# Made-up tokens that every generation begins with.
PROMPT = 8
_STRIDE = 7919


class Way(Enum):
    """What is kept between tokens. NO_CACHE computes everything before a token anew."""

    NO_CACHE = "no cache"
    F16 = "f16 cache"
    TIERS = "two tiers"


@dataclass(frozen=True, kw_only=True)
class Generator:
    """A model and how its caches are made."""

    model: Model
    backend: Backend
    window: int

    def steps(self, way: Way) -> Iterator[float]:
        """Seconds of each generated token, the first one's with the prompt's; endless."""
        caches = self.caches(way)
        ids = self.prompt()
        new = ids
        # The first pass compiles and warms up; it does not count.
        self.next(new, caches)
        _clear(caches)
        while True:
            began = time.perf_counter()
            if way is Way.NO_CACHE:
                _clear(caches)
                new = ids
            token = self.next(new, caches)
            yield time.perf_counter() - began
            ids.append(token)
            new = [token]

    def prompt(self) -> list[int]:
        """The made-up tokens."""
        return [(i * _STRIDE + 11) % self.model.vocabulary for i in range(PROMPT)]

    def caches(self, way: Way) -> list[TwoTierKVCache]:
        """Empty ones; without a cache they are cleared before each token."""
        tiers = CacheConfig(max_tokens=self.window, backend=self.backend, beyond_context=True)
        unencoded = replace(tiers, keys="f16", values="f16")
        return make_prompt_cache(self.model, tiers if way is Way.TIERS else unencoded)

    def next(self, ids: Sequence[int], caches: Sequence[TwoTierKVCache]) -> int:
        """Append `ids` and return the most likely token after them."""
        step = PREFILL_STEP[self.backend]
        for at in range(0, len(ids), step):
            hidden = self.model.hidden(mx.array([ids[at : at + step]]), caches)
            mx.eval([cache.pending() for cache in caches], hidden)
        return int(np.asarray(mx.argmax(self.model.logits(hidden[:, -1]))))


def take(
    steps: Iterator[float], most: int, *, until: Callable[[Sequence[float]], bool]
) -> list[float]:
    """Up to `most` steps, fewer once `until`(seconds of each so far) holds."""
    times: list[float] = []
    while len(times) < most and not until(times):
        times.append(next(steps))
    return times


def _clear(caches: Sequence[TwoTierKVCache]) -> None:
    for cache in caches:
        cache.clear()
