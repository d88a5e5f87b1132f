"""Boolean masks [.., L, S] of tokens about to be attended: True is visible.

The last query is the newest token. Nothing here knows how tokens are stored.
"""

import mlx.core as mx
import numpy as np
import numpy.typing as npt


def causal(queries: int, held: int, *, window: int | None = None) -> mx.array:
    """[L, S]: each query sees itself and what came before, at most `window` tokens."""
    rows = mx.arange(held - queries, held)[:, None]
    columns = mx.arange(held)[None]
    mask = rows >= columns
    return mask if window is None else mask & (rows < columns + window)


def hide_padding(mask: mx.array, padding: npt.NDArray[np.int32]) -> mx.array:
    """[L, S] -> [B, 1, L, S] with each row's leading `padding` hidden from its tokens.

    Padding still sees padding: a row with nothing visible would make NaN.
    """
    length, held = mask.shape
    count = mx.array(padding)[:, None, None, None]
    real_key = mx.arange(held) >= count
    padding_query = mx.arange(held - length, held)[:, None] < count
    return mask & (real_key | padding_query)
