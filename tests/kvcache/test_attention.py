"""The dispatcher: one layer's window is the same whatever cache holds its tokens."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from kvcache import (
    Backend,
    BlockPool,
    CacheConfig,
    DynamicKVCache,
    HotDtype,
    ModelShape,
    PagedKVCache,
    RowsKVCache,
    TwoTierKVCache,
    attend,
)
from kvcache.prompt_cache import from_plan
from kvcache.tiers.plan import resolve
from tests.kvcache import oracle

HKV, HQ, DIM = 2, 6, 16
SCALE = 0.4
LENGTHS = (29, 1, 1, 8, 33, 1)


def _drawn(heads: int, *, dim: int = DIM) -> mx.array:
    return mx.random.normal((1, heads, sum(LENGTHS), dim), key=mx.random.key(heads))


def _two_tier(window: int, dim: int = DIM, backend: Backend = Backend.REFERENCE) -> TwoTierKVCache:
    config = CacheConfig(
        keys="f16", values="f16", hot_dtype=HotDtype.F32, hot=5, block=7, backend=backend
    )
    shape = ModelShape(layers=1, kv_heads=HKV, head_dim=dim, context=1000, windows=(window,))
    return from_plan(resolve(config, shape), None)[0]


def _paged(backend: Backend) -> PagedKVCache:
    shape: dict[str, Any] = {"pages": 20, "page_tokens": 5, "kv_heads": HKV, "head_dim": DIM}
    return PagedKVCache(BlockPool(**shape, dtype=HotDtype.F32, backend=backend))


def _rows(window: int) -> RowsKVCache:
    return RowsKVCache([_two_tier(window)], [0])


CACHES: dict[str, Callable[[int], Any]] = {
    "two-tier": _two_tier,
    "two-tier cpu": lambda window: _two_tier(window, backend=Backend.CPU),
    "rows": _rows,
    "dynamic": lambda _: DynamicKVCache(99, dtype=HotDtype.F32, backend=Backend.REFERENCE),
    "dynamic cpu": lambda _: DynamicKVCache(99, dtype=HotDtype.F32, backend=Backend.CPU),
    "paged": lambda _: _paged(Backend.REFERENCE),
    "paged cpu": lambda _: _paged(Backend.CPU),
}


def _seen_within(q: mx.array, k: mx.array, v: mx.array, window: int) -> Any:
    total = q.shape[2]
    at = np.arange(total)
    visible = (at[None] <= at[:, None]) & (at[None] > at[:, None] - window)
    queries, keys, values = (np.asarray(x).astype(np.float64) for x in (q, k, v))
    return oracle.attention(queries, keys, values, SCALE, visible[None])


@pytest.mark.parametrize("window", [1, 6, 7, 8, 13, 200])
@pytest.mark.parametrize("make", CACHES.values(), ids=CACHES)
def test_every_cache_shows_the_same_window(make: Callable[[int], Any], window: int) -> None:
    cache, (q, k, v) = make(window), (_drawn(HQ), _drawn(HKV), _drawn(HKV + 1)[:, 1:])
    want, start = _seen_within(q, k, v, window), 0
    for length in LENGTHS:
        some = (x[:, :, start : start + length] for x in (q, k, v))
        got = attend(*some, cache=cache, scale=SCALE, window=window)
        np.testing.assert_allclose(got, want[:, :, start : start + length], atol=1e-3)
        start += length


@pytest.mark.parametrize("window", [1, 8, 200])
def test_without_a_cache(window: int) -> None:
    q, k, v = _drawn(HQ), _drawn(HKV), _drawn(HKV + 1)[:, 1:]
    got = attend(q, k, v, cache=None, scale=SCALE, window=window)
    np.testing.assert_allclose(got, _seen_within(q, k, v, window), atol=1e-4)


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])
def test_heads_of_256(backend: Backend) -> None:
    cache = _two_tier(13, 256, backend)
    q, k, v = (_drawn(heads, dim=256) / 4 for heads in (HQ, HKV, HKV))
    want, start = _seen_within(q, k, v, 13), 0
    for length in LENGTHS:
        some = (x[:, :, start : start + length] for x in (q, k, v))
        got = attend(*some, cache=cache, scale=SCALE)
        np.testing.assert_allclose(got, want[:, :, start : start + length], atol=1e-3)
        start += length
    assert cache.stats().plain == (backend is Backend.REFERENCE)
