import mlx.core as mx
import numpy as np
import pytest

from kvcache import reference
from kvcache.attention import attend_unencoded
from kvcache.config import Backend
from tests.kvcache import oracle

SHAPES = [  # B, Hq, Hkv, L, S, D
    (1, 6, 2, 1, 13, 16),
    (2, 9, 3, 5, 17, 64),
    (1, 7, 1, 11, 11, 32),
    (3, 5, 5, 3, 29, 80),
]


def _random(shape: tuple[int, ...]) -> tuple[mx.array, mx.array, mx.array]:
    batch, heads, kv_heads, queries, keys, dim = shape
    rng = np.random.default_rng(sum(shape))
    q = mx.array(rng.normal(size=(batch, heads, queries, dim)).astype(np.float32))
    k = mx.array(rng.normal(size=(batch, kv_heads, keys, dim)).astype(np.float32))
    v = mx.array(rng.normal(size=(batch, kv_heads, keys, dim)).astype(np.float32))
    return q, k, v


def _double(array: mx.array) -> oracle.Array:
    return np.asarray(array).astype(np.float64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("slice_scores", [2**24, 40])
def test_causal_attention_matches_its_definition(
    shape: tuple[int, ...], slice_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "MAX_SCORES", slice_scores)
    q, k, v = _random(shape)
    got = reference.attention(q, k, v, scale=0.3)
    visible = oracle.causal(q.shape[0], q.shape[2], k.shape[2])
    want = oracle.attention(_double(q), _double(k), _double(v), 0.3, visible)
    np.testing.assert_allclose(np.asarray(got), want, atol=2e-6)


@pytest.mark.parametrize("slice_scores", [2**24, 40])
def test_boolean_and_additive_masks_hide_the_same_keys(
    slice_scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "MAX_SCORES", slice_scores)
    q, k, v = _random((2, 6, 3, 5, 17, 16))
    visible = np.random.default_rng(3).random((2, 5, 17)) < 0.6
    visible[..., 0] = True
    want = oracle.attention(_double(q), _double(k), _double(v), 0.25, visible)
    mask = mx.array(visible)[:, None]
    additive = mx.where(mask, 0.0, -mx.inf)
    for given in (mask, additive):
        got = reference.attention(q, k, v, scale=0.25, mask=given)
        np.testing.assert_allclose(np.asarray(got), want, atol=2e-6)


def test_no_mask_hides_nothing() -> None:
    q, k, v = _random((1, 4, 2, 3, 7, 16))
    got = reference.attention(q, k, v, scale=0.25, mask=None)
    want = oracle.attention(
        _double(q), _double(k), _double(v), 0.25, np.ones((1, 3, 7), dtype=np.bool_)
    )
    np.testing.assert_allclose(np.asarray(got), want, atol=2e-6)


def test_large_scores_do_not_overflow() -> None:
    q, k, v = _random((1, 2, 1, 1, 5, 16))
    got = reference.attention(q * 1e4, k * 1e4, v, scale=1.0)
    assert np.isfinite(np.asarray(got)).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gpu_path_computes_the_same(shape: tuple[int, ...]) -> None:
    # MLX's fused attention has a CPU fallback, so its call is checked here too.
    q, k, v = _random(shape)
    got = attend_unencoded(
        q, k.astype(mx.float16), v, scale=0.3, mask="causal", backend=Backend.GPU
    )
    want = reference.attention(q, k.astype(mx.float16), v, scale=0.3)
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), atol=2e-5)
