"""Grouped-query attention in plain MLX operations: the oracle of every other backend.

Runs on any device, in float32, and knows nothing of caches or tiers.
Source: Ainslie et al., GQA (arXiv 2305.13245); softmax(q k^T * scale) v.
"""

from typing import Literal, TypeAlias

import mlx.core as mx

Mask: TypeAlias = mx.array | Literal["causal"] | None

# Scores of one slice of queries hold at most this many float32 elements (64 MiB).
_MAX_SCORES = 2**24


def attention(
    q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Mask = "causal"
) -> mx.array:
    """Attend queries to keys and values.

    q: [B, Hq, L, D]; k, v: [B, Hkv, S, D] with Hq a multiple of Hkv.
    mask: "causal" aligns the last query with the last key; an array, boolean
    (True = visible) or additive, broadcasts to [B, Hq, L, S]; None hides nothing.
    Returns [B, Hq, L, D] in q's dtype. Queries go in slices, so that the scores
    held at a time are bounded.
    """
    queries, keys = q.shape[2], k.shape[2]
    per_query = q.shape[0] * q.shape[1] * keys
    step = max(1, _MAX_SCORES // max(1, per_query))
    k32, v32 = k.astype(mx.float32), v.astype(mx.float32)
    slices = [
        _attend_slice(
            q[:, :, start : start + step],
            k32,
            v32,
            scale,
            _mask_rows(mask, start, min(start + step, queries), queries, keys),
        )
        for start in range(0, queries, step)
    ]
    return mx.concatenate(slices, axis=2) if len(slices) > 1 else slices[0]


def _mask_rows(mask: Mask, start: int, stop: int, queries: int, keys: int) -> mx.array | None:
    """The mask of queries start..stop as an array, or None where it hides nothing."""
    if mask is None:
        return None
    if isinstance(mask, str):
        if queries == 1:
            return None
        first = keys - queries
        rows = mx.arange(first + start, first + stop)[:, None]
        return rows >= mx.arange(keys)[None]
    return mask[..., start:stop, :] if mask.shape[-2] == queries else mask


def _attend_slice(
    q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None
) -> mx.array:
    batch, heads, length, dim = q.shape
    groups = heads // k.shape[1]
    # The G query heads that share a KV head become rows of one product.
    grouped = (q.astype(mx.float32) * scale).reshape(batch, -1, groups * length, dim)
    scores = grouped @ k.swapaxes(-1, -2)  # [B, Hkv, G*L, S]
    scores = scores.reshape(batch, heads, length, -1)  # [B, Hq, L, S]
    if mask is not None:
        hidden = mx.array(mx.finfo(mx.float32).min)
        scores = mx.where(mask, scores, hidden) if mask.dtype == mx.bool_ else scores + mask
    weights = mx.softmax(scores, axis=-1, precise=True)
    out = weights.reshape(batch, -1, groups * length, k.shape[2]) @ v  # [B, Hkv, G*L, D]
    return out.reshape(batch, heads, length, -1).astype(q.dtype)
