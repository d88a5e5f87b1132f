"""Masks that no attention takes, whatever cache is behind it."""

from typing import Any, Protocol

import mlx.core as mx
import pytest

from kvcache import (
    Backend,
    BlockPool,
    CacheConfig,
    CacheError,
    DynamicKVCache,
    ModelShape,
    PagedKVCache,
    attend,
    resolve,
)
from kvcache.prompt_cache import from_plan, rows_from_plan

KINDS = ("none", "two tiers", "rows", "dynamic", "paged")


class _Attending(Protocol):
    @property
    def offset(self) -> int: ...

    def attend(self, q: Any, k: Any, v: Any, *, scale: float, mask: Any = ...) -> mx.array: ...


def made(kind: str, backend: Backend) -> _Attending | None:
    """An empty cache."""
    shape = ModelShape(layers=1, kv_heads=2, head_dim=16, context=300)
    plan = resolve(CacheConfig(max_tokens=90, hot=16, block=16, backend=backend), shape)
    pool = BlockPool(9, kv_heads=2, head_dim=16, page_tokens=7, backend=backend)
    kinds = {
        "none": None,
        "two tiers": from_plan(plan, None)[0],
        "rows": rows_from_plan(plan, None, left_padding=[0])[0],
        "dynamic": DynamicKVCache(50, backend=backend),
        "paged": PagedKVCache(pool),
    }
    return kinds[kind]


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])
@pytest.mark.parametrize("kind", KINDS)
def test_a_word_that_names_no_mask_is_refused(kind: str, backend: Backend) -> None:
    """Before anything is appended; it was taken as causal."""
    cache, q, k = made(kind, backend), mx.zeros((1, 4, 3, 16)), mx.zeros((1, 2, 3, 16))
    word: Any = "casual"
    with pytest.raises(CacheError, match="got the mask 'casual', expected 'causal', an array"):
        attend(q, k, k, cache=cache, scale=0.25, mask=word)
    if cache is not None:
        assert cache.offset == 0
    assert attend(q, k, k, cache=cache, scale=0.25, mask="causal").shape == q.shape
