"""Grouped-query attention in plain MLX operations: the oracle of every other backend.

Runs on any device, in float32, and knows nothing of caches or tiers. `attention` takes all
tokens at once; `attend_part`, `merge` and `finish` take them in parts, exactly.
Sources: Ainslie et al., GQA (arXiv 2305.13245), softmax(q k^T * scale) v; online softmax,
Milakov & Gimelshein (arXiv 1805.02867).
"""

from typing import Literal, NamedTuple, TypeAlias

import mlx.core as mx

from kvcache.errors import CacheError
from kvcache.given import array, refused

Mask: TypeAlias = mx.array | Literal["causal"] | None

# Scores of one slice of queries, or of one part, hold at most this many float32 elements (64 MiB).
MAX_SCORES = 2**24
_LOWEST = float(mx.finfo(mx.float32).min)


def check_mask(mask: object) -> None:
    """Raise CacheError for a word that names no mask."""
    if isinstance(mask, str) and mask != "causal":
        raise CacheError(f"got the mask {mask!r}, expected 'causal', an array, or None for none")


def fitting_mask(mask: object, shape: tuple[int, ...]) -> Mask:
    """A caller's mask for scores of `shape` [B, Hq, L, S]. Raises CacheError.

    Arrays are booleans (True = visible) or floats, which are added to the scores.
    """
    if mask is None:
        return None
    if isinstance(mask, str):
        check_mask(mask)
        return "causal"
    found = array("mask", mask)
    if found.dtype != mx.bool_ and not mx.issubdtype(found.dtype, mx.floating):
        raise refused("mask", found.dtype, "booleans (True = visible), or floats to be added")
    if found.ndim and found.shape[-1] != shape[-1]:
        raise CacheError(
            f"got a mask of {found.shape[-1]} columns, expected {shape[-1]}: one for each token "
            "that can be seen"
        )
    pairs = list(zip(reversed(found.shape), reversed(shape), strict=False))
    if found.ndim not in (2, 3, 4) or any(n not in (1, most) for n, most in pairs):
        raise CacheError(
            f"got a mask of {found.shape}, expected one that broadcasts to [B, Hq, L, S] = "
            f"{list(shape)}"
        )
    return found


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
    step = max(1, MAX_SCORES // max(1, per_query))
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


class Partial(NamedTuple):
    """Of each query row [B, Hq, L, 1 or D]: greatest score, sum of weights, weighted values.

    A weight is exp(score - top).
    """

    top: mx.array
    total: mx.array
    value: mx.array


def attend_part(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> Partial:
    """Attend scaled queries q [B, Hq, L, D] to k, v [B, Hkv, S, D], all float32.

    mask, if any, broadcasts to [B, Hq, L, S]: boolean (True = visible) or added
    to the scores. A row may see nothing.
    """
    scores = grouped_scores(q, k)
    if mask is not None and mask.dtype != mx.bool_:
        scores, mask = mx.maximum(scores + mask, _LOWEST), None
    if mask is not None:
        scores = mx.where(mask, scores, _LOWEST)
    top = scores.max(axis=-1, keepdims=True)
    weights = mx.exp(scores - top)
    if mask is not None:
        weights = mx.where(mask, weights, 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    return Partial(top, total, _weigh(weights, v))


def merge(a: Partial, b: Partial) -> Partial:
    """The partial of both sets of tokens."""
    top = mx.maximum(a.top, b.top)
    ours, theirs = mx.exp(a.top - top), mx.exp(b.top - top)
    return Partial(top, a.total * ours + b.total * theirs, a.value * ours + b.value * theirs)


def finish(partial: Partial) -> mx.array:
    """The softmax-weighted mean of the values [B, Hq, L, D]."""
    return partial.value / partial.total


def grouped_scores(q: mx.array, k: mx.array) -> mx.array:
    """q k^T [B, Hq, L, S]; the G query heads that share a KV head become rows of one product."""
    batch, heads, length, dim = q.shape
    rows = q.reshape(batch, k.shape[1], -1, dim)  # [B, Hkv, G*L, D]
    return (rows @ k.swapaxes(-1, -2)).reshape(batch, heads, length, -1)


def _weigh(weights: mx.array, v: mx.array) -> mx.array:
    batch, heads, length, held = weights.shape
    rows = weights.reshape(batch, v.shape[1], -1, held)
    return (rows @ v).reshape(batch, heads, length, -1)


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
    scores = grouped_scores(q.astype(mx.float32) * scale, k)
    if mask is not None:
        hidden = mx.array(_LOWEST)
        scores = mx.where(mask, scores, hidden) if mask.dtype == mx.bool_ else scores + mask
    return _weigh(mx.softmax(scores, axis=-1, precise=True), v).astype(q.dtype)
