"""Tokens and queries for the tests of unencoded caches, of distinct sizes on every axis."""

import mlx.core as mx
import numpy as np
import pytest

from kvcache import Backend, DynamicKVCache, HotDtype

HKV, HQ, DIM = 3, 6, 16
BACKENDS = [Backend.AUTO, Backend.REFERENCE]

needs_kernels = pytest.mark.skipif(
    Backend.AUTO.resolve() is not Backend.CPU, reason="needs the CPU kernels"
)
# Of keys and values, none of which goes behind [1, HKV, L, DIM].
MISFITS = [
    ((1, HKV, 2, DIM), (1, HKV, 3, DIM)),
    ((1, HKV + 1, 2, DIM), (1, HKV + 1, 2, DIM)),
    ((2, HKV, 2, DIM), (2, HKV, 2, DIM)),
    ((1, HKV, 2, DIM + 1), (1, HKV, 2, DIM + 1)),
    ((HKV, 2, DIM), (HKV, 2, DIM)),
]


def tokens(count: int, *, batch: int = 1, seed: int = 7) -> tuple[mx.array, mx.array]:
    rng = np.random.default_rng(seed)
    k, v = rng.normal(size=(2, batch, HKV, count, DIM)).astype(np.float32)
    return mx.array(k), mx.array(v)


def queries(count: int, *, batch: int = 1) -> mx.array:
    rng = np.random.default_rng(count)
    return mx.array(rng.normal(size=(batch, HQ, count, DIM)).astype(np.float32))


def full_precision(size: int = 1000) -> DynamicKVCache:
    return DynamicKVCache(size, dtype=HotDtype.F32)
