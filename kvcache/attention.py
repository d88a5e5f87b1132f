"""The one dispatcher of attention: (queries, keys, values, cache) -> output.

Networks call `attend` and nothing else; which implementation runs is the
cache's backend. This module does not know how a cache stores its tokens.
"""

from typing import Protocol, runtime_checkable

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from kvcache import reference
from kvcache.checks import check_queries, check_tokens, scored
from kvcache.config import Backend
from kvcache.given import array, integer, refused
from kvcache.native.library import library
from kvcache.native.structs import Array
from kvcache.reference import Mask
from kvcache.rows import RowsKVCache
from kvcache.sight import Sight
from kvcache.two_tier import TwoTierKVCache


@runtime_checkable
class AttendingCache(Protocol):
    """A cache that can attend over what it holds."""

    @property
    def offset(self) -> int:
        """Position of the next token."""
        ...

    def attend(
        self, q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Mask = "causal"
    ) -> mx.array:
        """Append k and v, then attend q to all that is held."""
        ...


@runtime_checkable
class _MaskingCache(Protocol):
    """A cache that holds what a window hides, and takes a mask that says so."""

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> Mask: ...


def attend(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    cache: AttendingCache | None,
    scale: float,
    mask: Mask = "causal",
    both: mx.array | None = None,
    window: int | None = None,
) -> mx.array:
    """Append new keys and values to `cache` and attend the queries to all it holds.

    q: [B, Hq, L, D]; k, v: [B, Hkv, L, D], after RoPE. Without a cache the
    queries attend to k and v alone. both: k and v as one array, [2 * B, Hkv, L, D],
    from who has them so: some caches then write both in one launch. window: how many tokens
    a query of this layer sees, its own the last, where mask is "causal"; two-tier caches know
    it from their plan. Returns [B, Hq, L, D] in q's dtype.

    Raises CacheError, which names the argument, for what cannot be; caches are then as they
    were. What is not a number in q, k and v is refused by caches alone (`check_finite`).
    """
    if window is not None and isinstance(mask, str):
        mask = _within(integer("window", window, least=1), array("q", q).shape[-2], cache)
    if cache is None:
        return _attend_alone(array("q", q), array("k", k), array("v", v), scale, mask)
    if isinstance(cache, TwoTierKVCache):
        return cache.attend(q, k, v, scale=scale, mask=mask, both=both)
    if not isinstance(cache, AttendingCache):
        raise refused("cache", cache, "a cache that attends, or None")
    return cache.attend(q, k, v, scale=scale, mask=mask)


def _attend_alone(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: Mask) -> mx.array:
    """Of new tokens alone."""
    check_tokens(k, v, (None, None, None))
    (batch, heads, length, dim), backend = k.shape, Backend.AUTO.resolve()
    check_queries(q, (batch, heads, dim), length)
    scale, mask = scored(scale, mask, (*q.shape[:3], length))
    return attend_unencoded(q, k, v, scale=scale, mask=mask, backend=backend)


def _within(window: int, queries: int, cache: AttendingCache | None) -> Mask:
    """The mask of new tokens in a layer with a window; "causal" where it hides none."""
    if isinstance(cache, TwoTierKVCache | RowsKVCache):
        return "causal"
    held = 0 if cache is None else cache.offset
    if held + queries <= window:
        return "causal"
    if cache is None:
        return Sight.of_all(queries, queries).full(window)
    return cache.make_mask(queries, True, window) if isinstance(cache, _MaskingCache) else "causal"


def attend_unencoded(
    q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Mask, backend: Backend
) -> mx.array:
    """Attention over unencoded keys and values [B, Hkv, S, D] by a resolved backend."""
    reference.check_mask(mask)
    if backend is Backend.GPU:
        return mx.fast.scaled_dot_product_attention(
            q, k.astype(q.dtype), v.astype(q.dtype), scale=scale, mask=mask
        )
    return reference.attention(q, k, v, scale=scale, mask=mask)


def attend_on_cpu(
    q: mx.array,
    keys: Array,
    values: Array,
    *,
    held: int,
    scale: float,
    padding: npt.NDArray[np.int32] | None,
) -> mx.array:
    """Causal attention by the CPU kernels over memory [B, Hkv, capacity, D].

    padding [B]: leading tokens of each row that are never attended to.
    """
    q32 = np.ascontiguousarray(q.astype(mx.float32))
    out = library().attend(q32, keys, values, held=held, scale=scale, padding=padding)
    return mx.array(out).astype(q.dtype)
