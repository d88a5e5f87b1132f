import math
from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest

from kvcache.codecs.lloyd_max import levels, lookup, nearest

ERRORS = {1: 0.36338, 2: 0.11748, 3: 0.03455, 4: 0.00950}


def _density(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _below(x: float) -> float:
    return (1 + math.erf(x / math.sqrt(2))) / 2


def _lloyd_max(bits: int) -> list[float]:
    """Centroids of N(0, 1): each level the mean of what is nearest to it, until none moves."""
    table = list(np.linspace(-2, 2, 2**bits))
    for _ in range(1000):
        edges = [-40.0, *((a + b) / 2 for a, b in pairwise(table)), 40.0]
        table = [
            (_density(low) - _density(high)) / (_below(high) - _below(low))
            for low, high in pairwise(edges)
        ]
    return table


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_levels_are_the_fixed_point_of_lloyd_and_max(bits: int) -> None:
    np.testing.assert_allclose(levels(bits), _lloyd_max(bits), atol=1e-5)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_nearest_is_nearest_and_its_error_is_the_codebooks(bits: int) -> None:
    x = np.random.default_rng(2).normal(size=(4, 50_000)).astype(np.float32)
    codes = nearest(mx.array(x), bits)
    table = np.array(levels(bits), np.float32)
    expected = np.abs(x[..., None] - table).argmin(axis=-1)
    assert np.array_equal(np.asarray(codes), expected)
    error = np.square(np.asarray(lookup(codes, bits)) - x).mean()
    assert error == pytest.approx(ERRORS[bits], rel=0.02)
