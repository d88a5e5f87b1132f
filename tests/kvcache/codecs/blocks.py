"""Blocks of made-up keys and values for the codecs' tests."""

import mlx.core as mx
import numpy as np

BATCH, HEADS = 2, 3


def gaussian(tokens: int, dim: int, *, seed: int = 5) -> mx.array:
    """N(0, 1), [2, 3, tokens, dim]."""
    rng = np.random.default_rng(seed)
    return mx.array(rng.normal(size=(BATCH, HEADS, tokens, dim)).astype(np.float32))


def with_outliers(tokens: int, dim: int, *, seed: int = 5) -> mx.array:
    """Gaussian, but every 13th channel lies about 12, and every 17th token is 8 times as large."""
    block = np.array(gaussian(tokens, dim, seed=seed))
    block[..., ::13] += 12
    block[..., ::17, :] *= 8
    return mx.array(block)


def relative_error(got: mx.array, want: mx.array) -> float:
    """Mean squared error over mean square."""
    return float((mx.square(got - want).mean() / mx.square(want).mean()).item())
