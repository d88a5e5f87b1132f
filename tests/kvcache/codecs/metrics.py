"""Made-up queries for tests of error feedback."""

import mlx.core as mx
import numpy as np

from kvcache.codecs.feedback import LayerMetric


def queries(heads: int, dim: int, *, seed: int = 3, count: int = 300) -> mx.array:
    """Of each KV head, [heads, count, dim]: channels of unlike size that go together."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(heads, dim, dim)) * rng.uniform(0.1, 2, size=(heads, 1, dim))
    common = rng.normal(size=(heads, count, dim)) + rng.normal(size=(heads, 1, dim))
    return mx.array((common @ mixed).astype(np.float32))


def metric(heads: int, dim: int, *, seed: int = 3) -> LayerMetric:
    """The second moments of such queries."""
    moments = moments_of(queries(heads, dim, seed=seed))
    return LayerMetric(moments=lambda: moments)


def moments_of(q: mx.array) -> mx.array:
    """[heads, D, D] of queries [heads, count, D]."""
    return q.swapaxes(1, 2) @ q / q.shape[1]
