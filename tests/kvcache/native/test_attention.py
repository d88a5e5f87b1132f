"""Attention by the kernels against its definition in float64."""

import numpy as np
import pytest

from kvcache import CacheError
from kvcache.native.library import Library
from kvcache.native.structs import Array
from tests.kvcache import oracle

SHAPES = [  # B, Hq, Hkv, L, held, D
    (1, 9, 3, 1, 1, 64),
    (1, 9, 3, 1, 63, 64),
    (1, 6, 2, 1, 700, 80),
    (2, 6, 1, 3, 64, 128),
    (1, 7, 7, 17, 17, 16),
    (2, 6, 2, 37, 203, 96),
]


def _stored(x: oracle.Array, kind: str) -> tuple[Array, oracle.Array]:
    """The bytes that the kernels read, and what they stand for."""
    if kind == "f16":
        half = x.astype(np.float16)
        return half, half.astype(np.float64)
    single = x.astype(np.float32)
    if kind == "f32":
        return single, single.astype(np.float64)
    bits = (single.view(np.uint32) >> 16).astype(np.uint16)
    return bits, (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_its_definition(kernels: Library, shape: tuple[int, ...], kind: str) -> None:
    batch, heads, kv_heads, queries, held, dim = shape
    rng = np.random.default_rng(held)
    q = rng.normal(size=(batch, heads, queries, dim)).astype(np.float32)
    k, v = rng.normal(size=(2, batch, kv_heads, held + 13, dim)) * 3
    (keys, exact_k), (values, exact_v) = _stored(k, kind), _stored(v, kind)
    keys[:, :, held:] = values[:, :, held:] = 60000 if kind != "f16" else np.nan
    got = kernels.attend(q, keys, values, held=held, scale=0.11)
    want = oracle.attention(
        q.astype(np.float64),
        exact_k[:, :, :held],
        exact_v[:, :, :held],
        0.11,
        oracle.causal(batch, queries, held),
    )
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("queries", [1, 5, 23])
def test_padding_is_hidden(kernels: Library, queries: int) -> None:
    held, padding = 23, np.array([0, 4, 19], np.int32)
    rng = np.random.default_rng(queries)
    q = rng.normal(size=(3, 6, queries, 32)).astype(np.float32)
    keys, values = rng.normal(size=(2, 3, 2, 40, 32)).astype(np.float32)
    got = kernels.attend(q, keys, values, held=held, scale=0.2, padding=padding)
    visible = oracle.causal(3, queries, held).copy()
    for row, pad in enumerate(padding):
        real = np.arange(held - queries, held) >= pad
        visible[row, real, :pad] = False
    want = oracle.attention(
        q.astype(np.float64),
        keys[:, :, :held].astype(np.float64),
        values[:, :, :held].astype(np.float64),
        0.2,
        visible,
    )
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_large_scores_do_not_overflow(kernels: Library) -> None:
    q = np.full((1, 2, 1, 16), 1e3, np.float32)
    keys = np.linspace(-1e3, 1e3, 150 * 16, dtype=np.float32).reshape(1, 1, 150, 16)
    got = kernels.attend(q, keys, keys, held=150, scale=1.0)
    np.testing.assert_allclose(got[0, 0, 0], keys[0, 0, -1], rtol=1e-6)


def test_odd_head_dimensions_are_refused(kernels: Library) -> None:
    q = np.zeros((1, 1, 1, 24), np.float32)
    with pytest.raises(CacheError, match="24 dimensions, expected a multiple of 16"):
        kernels.attend(q, q, q, held=1, scale=1.0)
