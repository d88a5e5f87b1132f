"""Draws the next token on a CPU, without sorting a vocabulary.

What cut-offs leave are always the likeliest tokens, as many as the strictest of them lets pass.
So one looks how many there are near the likeliest, then further away, and sorts only those among
which the last one must be. Knows no settings of users.
"""

import math

import mlx.core as mx
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
# How far below the largest logit to look, one after the other.
_DEPTHS = (3.0, 5.0, 7.0, 10.0, 16.0, math.inf)
# Of SplitMix64 (Steele, Lea, Flood 2014).
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIXES = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


class Drawer:
    """Draws for the rows of a batch; a seed makes that repeatable. The cut-offs: as for `left`."""

    def __init__(
        self, *, temperature: float, top_p: float, top_k: int, min_p: float, seed: int | None
    ) -> None:
        self._temperature = np.float64(temperature)
        self._top_p, self._top_k, self._min_p = top_p, top_k, min_p
        self._random = np.random.default_rng(seed)

    def __call__(self, logits: mx.array) -> mx.array:
        """Logits [B, vocabulary] -> ids [B]."""
        rows = np.asarray(logits.astype(mx.float32))
        return mx.array([self._drawn(row) for row in rows], mx.uint32)

    def _drawn(self, logits: Floats) -> int:
        peak = logits.max()
        if not np.isfinite(peak):
            return 0  # whoever reads it is told by `require_finite`
        logits = logits - peak
        ids = left(logits, top_p=self._top_p, top_k=self._top_k, min_p=self._min_p)
        if ids is None:
            sums = np.cumsum(np.exp(logits / self._temperature))
            found = int(np.searchsorted(sums, self._random.random() * sums[-1], side="right"))
            return min(found, len(sums) - 1)
        key = self._random.integers(2**64, dtype=np.uint64)
        return int(ids[np.argmax(logits[ids] / self._temperature + _noise(key, ids))])


def _noise(key: np.uint64, ids: npt.NDArray[np.intp]) -> Floats:
    """Gumbel noise: the largest sum of a logit and its noise is a draw from the softmax.

    A token's noise follows from the key and its id alone (SplitMix64), so that a seed gives the
    same draw also where a last bit decides whether another, unlikely token is left.
    """
    bits = key + (ids.astype(np.uint64) + np.uint64(1)) * _STEP
    for shift, factor in _MIXES:
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    bits ^= bits >> np.uint64(31)
    uniform = ((bits >> np.uint64(11)) + 0.5) * 2.0**-53
    noise: Floats = -np.log(-np.log(uniform))
    return noise


def left(
    logits: Floats, *, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0
) -> npt.NDArray[np.intp] | None:
    """Ids of the tokens that the cut-offs leave; None: all.

    logits: less the largest. Of their softmax, top_p leaves the fewest tokens that make up so
    much of it, min_p those of so large a share of the likeliest, top_k so many (0: all); tokens
    as likely as the last of them stay too.
    """
    floor = math.log(min_p) if min_p else -math.inf
    top_k = top_k if top_k < len(logits) else 0
    if not top_k and top_p == 1:
        return None if floor == -math.inf else np.flatnonzero(logits >= np.float32(floor))
    # What more may be left, in tokens and of the softmax.
    count = top_k or len(logits)
    mass = math.inf if top_p == 1 else top_p * float(np.exp(logits).sum(dtype=np.float64))
    upper = math.inf
    for depth in _DEPTHS:
        line = max(floor, -depth)
        near = logits[(logits >= np.float32(line)) & (logits < np.float32(upper))]
        so_much = float(np.exp(near).sum(dtype=np.float64))
        if line == floor or len(near) >= count or so_much >= mass:
            break
        count, mass, upper = count - len(near), mass - so_much, line
    near = np.sort(near)[::-1]
    last = int(np.searchsorted(np.cumsum(np.exp(near), dtype=np.float64), mass))
    last = min(last, count - 1, len(near) - 1)
    return np.flatnonzero(logits >= (near[last] if len(near) else np.float32(upper)))
