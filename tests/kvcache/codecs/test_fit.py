import mlx.core as mx
import numpy as np

from kvcache.codecs.fit import least_error, unbiased_scale
from tests.kvcache.codecs.blocks import gaussian


def _rounded(y: mx.array, scale: mx.array) -> mx.array:
    return mx.clip(mx.round(y / scale), -2, 2) * scale


def test_least_error_chooses_row_by_row() -> None:
    y = gaussian(11, 24)
    scales = [mx.full((*y.shape[:-1], 1), size) for size in (0.9, 0.5, 1.4)]
    errors = np.stack([np.square(np.asarray(_rounded(y, s) - y)).sum(axis=-1) for s in scales])
    expected = np.array([0.9, 0.5, 1.4], np.float32)[errors.argmin(axis=0)]
    chosen = np.asarray(least_error(y, scales, _rounded))[..., 0]
    assert np.array_equal(chosen, expected)
    assert len(np.unique(chosen)) > 1


def test_unbiased_scale_keeps_the_product_with_itself() -> None:
    y = gaussian(11, 24)
    levels = mx.sign(y)
    for axis in (-1, -2):
        scaled = levels * unbiased_scale(y, levels, axis=axis)
        assert mx.allclose((scaled * y).sum(axis=axis), (y * y).sum(axis=axis), rtol=1e-4)


def test_unbiased_scale_of_zeros_is_zero() -> None:
    assert mx.array_equal(unbiased_scale(mx.zeros((3, 8)), mx.ones((3, 8))), mx.zeros((3, 1)))
