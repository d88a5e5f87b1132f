"""Caches of one process are used by threads, each its own: one does what it does alone."""

from collections.abc import Callable
from threading import Barrier, Thread
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from kvcache import (
    Backend,
    BlockPool,
    CacheConfig,
    DynamicKVCache,
    PagedKVCache,
    RowsKVCache,
    TwoTierKVCache,
)

HKV, HQ, DIM, THREADS, STEPS = 2, 6, 32, 4, 25


def _two_tier(backend: str, keys: str = "hkivi4/turbo4u") -> TwoTierKVCache:
    config = CacheConfig(
        max_tokens=90, hot=13, block=8, sinks=3, keys=keys, backend=Backend(backend)
    )
    return TwoTierKVCache.from_config(config)


KINDS: dict[str, Callable[[str], Any]] = {
    "two tiers": _two_tier,
    "plain rounding": lambda backend: _two_tier(backend, "q8/q4"),
    "rows": lambda backend: RowsKVCache([_two_tier(backend)], [0]),
    "dynamic": lambda backend: DynamicKVCache(backend=backend),
    "paged": lambda backend: PagedKVCache(
        BlockPool(90, kv_heads=HKV, head_dim=DIM, page_tokens=4, backend=backend)
    ),
}


def _talk(cache: Any, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    outputs = []
    for step in range(STEPS):
        length = 1 + (step + seed) % 9
        q, k, v = (
            mx.array(rng.normal(size=(1, heads, length, DIM)).astype(np.float32))
            for heads in (HQ, HKV, HKV)
        )
        outputs.append(np.array(cache.attend(q, k, v, scale=0.2)))
    return outputs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_threads_with_caches_of_their_own_do_not_meet(backend: str, kind: str) -> None:
    alone = [_talk(KINDS[kind](backend), seed) for seed in range(THREADS)]
    found: dict[int, list[np.ndarray]] = {}
    together = Barrier(THREADS)

    def run(seed: int) -> None:
        together.wait()
        found[seed] = _talk(KINDS[kind](backend), seed)

    threads = [Thread(target=run, args=(seed,), daemon=True) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert sorted(found) == list(range(THREADS))
    for seed, outputs in found.items():
        for got, right in zip(outputs, alone[seed], strict=True):
            np.testing.assert_array_equal(got, right)
