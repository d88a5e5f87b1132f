from dataclasses import replace

import mlx.core as mx
import pytest

from kvcache.codecs import codec
from tests.kvcache.codecs.blocks import gaussian, relative_error, with_outliers


@pytest.mark.parametrize("dim", [64, 80, 128])
def test_loses_less_than_rotated_affine_on_outliers(dim: int) -> None:
    x = with_outliers(64, dim)
    even, plain = codec("kvarn4", seed=1), codec("h4", seed=1)
    error = relative_error(plain.decode(plain.encode(x)), x)
    assert relative_error(even.decode(even.encode(x)), x) < 0.75 * error


def test_tokens_and_channels_of_any_size_are_coded_as_well() -> None:
    x = gaussian(64, 64)
    factors = mx.where(mx.arange(64) % 3 == 0, 100.0, 1.0)
    scheme = replace(codec("kvarn4"), rotation=None)
    plain = relative_error(scheme.decode(scheme.encode(x)), x)
    for sizes in (factors, factors[:, None]):
        scaled = scheme.decode(scheme.encode(x * sizes)) / sizes
        assert relative_error(scaled, x) < 1.3 * plain


def test_scores_do_not_shrink() -> None:
    x, scheme = gaussian(64, 64), codec("kvarn2", seed=1)
    centred = x - x.mean(axis=-2, keepdims=True)
    decoded = scheme.decode(scheme.encode(x))
    along = (decoded * centred).sum(axis=-1) / (x * centred).sum(axis=-1)
    assert abs(along.mean().item() - 1) < 0.01
