"""Attention as its definition reads: float64 numpy, one head and one query at a time."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def attention(q: Array, k: Array, v: Array, scale: float, visible: npt.NDArray[np.bool_]) -> Array:
    """q [B, Hq, L, D]; k, v [B, Hkv, S, D]; visible [B, L, S] -> [B, Hq, L, D]."""
    groups = q.shape[1] // k.shape[1]
    out = np.zeros(q.shape)
    for row, head, query in np.ndindex(q.shape[:3]):
        seen = visible[row, query]
        keys, values = k[row, head // groups][seen], v[row, head // groups][seen]
        scores = keys @ q[row, head, query] * scale
        weights = np.exp(scores - scores.max())
        out[row, head, query] = weights / weights.sum() @ values
    return out


def causal(batch: int, queries: int, keys: int) -> npt.NDArray[np.bool_]:
    """The last query sees every key; each one before it sees one fewer."""
    mask = np.arange(keys)[None] <= np.arange(keys - queries, keys)[:, None]
    return np.broadcast_to(mask, (batch, queries, keys))
