"""Choosing the scale of codes: the clip of least error, and no shrink of dot products."""

from collections.abc import Callable, Iterable

import mlx.core as mx


def least_error(
    y: mx.array, scales: Iterable[mx.array], coded: Callable[[mx.array, mx.array], mx.array]
) -> mx.array:
    """Of several scales [..., 1], for each row of y the one whose `coded(y, scale)` is nearest.

    Clipping a row's largest entries may pay: all others get a finer step.
    """
    first, *others = scales
    best, least = first, _squared_error(coded(y, first), y)
    for scale in others:
        error = _squared_error(coded(y, scale), y)
        best = mx.where(error < least, scale, best)
        least = mx.minimum(error, least)
    return best


def unbiased_scale(y: mx.array, levels: mx.array, *, axis: int = -1) -> mx.array:
    """The scale s with <y, s * levels> = <y, y> along `axis`, which stays as 1; 0 if y is.

    Nearest levels are shorter than what they stand for, which flattens every
    score; this undoes it at a small cost in squared error.
    """
    along = (y * levels).sum(axis=axis, keepdims=True)
    length = (y * y).sum(axis=axis, keepdims=True)
    return mx.where(along > 0, length / mx.where(along > 0, along, 1.0), 0.0)


def _squared_error(coded: mx.array, y: mx.array) -> mx.array:
    return mx.square(coded - y).sum(axis=-1, keepdims=True)
