"""Attention in parts: softmax over some tokens, kept so that parts can be merged exactly.

Scores are held for a bounded number of tokens at a time. Plain MLX, float32.
Source: online softmax, Milakov & Gimelshein, arXiv 1805.02867.
"""

from typing import NamedTuple

import mlx.core as mx

_LOWEST = float(mx.finfo(mx.float32).min)


class Partial(NamedTuple):
    """Of each query row [B, Hq, L, 1 or D]: greatest score, sum of weights, weighted values.

    A weight is exp(score - top).
    """

    top: mx.array
    total: mx.array
    value: mx.array


def attend_part(q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None) -> Partial:
    """Attend scaled queries q [B, Hq, L, D] to k, v [B, Hkv, S, D].

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
