from math import sqrt

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest

from kvcache.codecs import codec
from kvcache.codecs.lloyd_max import levels, lookup
from kvcache.codecs.packing import unpack
from tests.kvcache.codecs.blocks import gaussian, relative_error, with_outliers

CODEBOOK_ERRORS = {2: 0.11748, 3: 0.03455, 4: 0.00950}


def _unit_vectors(count: int, dim: int, seed: int) -> npt.NDArray[np.float64]:
    x = np.random.default_rng(seed).normal(size=(count, dim))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


def _oracle_error(bits: int, dim: int) -> float:
    """Mean squared error of length-corrected nearest levels on random unit vectors."""
    x = _unit_vectors(20_000, dim, seed=1)
    table = np.array(levels(bits))
    coded = table[np.searchsorted((table[1:] + table[:-1]) / 2, x * sqrt(dim))]
    coded /= np.linalg.norm(coded, axis=1, keepdims=True)
    return float(np.square(coded - x).sum(axis=1).mean())


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("dim", [64, 128])
def test_error_is_that_of_the_quantizer_alone(bits: int, dim: int) -> None:
    scheme = codec(f"turbo{bits}", seed=3)
    x = mx.array(_unit_vectors(12_000, dim, seed=2).astype(np.float32).reshape(1, 3, -1, dim))
    encoded = scheme.encode(x)
    error = relative_error(scheme.decode(encoded), x)
    assert error == pytest.approx(_oracle_error(bits, dim), rel=0.01)
    uncorrected = lookup(unpack(encoded.parts["words"], bits, dim), bits) / sqrt(dim)
    error = relative_error(uncorrected, scheme.rotate(x))
    assert error == pytest.approx(CODEBOOK_ERRORS[bits], rel=0.04)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_lengths_come_back(bits: int) -> None:
    x = with_outliers(17, 80)
    scheme = codec(f"turbo{bits}", seed=3)
    lengths = mx.linalg.norm(scheme.decode(scheme.encode(x)), axis=-1)
    assert mx.allclose(lengths, mx.linalg.norm(x, axis=-1), rtol=1e-3)


def _estimates(name: str, q: mx.array, k: mx.array, draws: int) -> npt.NDArray[np.float32]:
    """<q, decoded k> under `draws` independent rotations, [draws, tokens]: one head is one draw."""
    scheme = codec(name, seed=11)
    heads = mx.broadcast_to(k, (1, draws, *k.shape))
    estimates = (scheme.decode(scheme.encode(heads)) * q).sum(axis=-1)
    return np.asarray(estimates[0])


@pytest.mark.parametrize("name", ["turbo2p", "turbo3p", "turbo4p"])
@pytest.mark.parametrize("dim", [64, 80])
def test_prod_estimates_scores_without_bias(name: str, dim: int) -> None:
    q, k = gaussian(9, dim)[0, :2]
    k = k + q  # so that the scores are not near 0
    draws = 600
    errors = _estimates(name, q, k, draws) - np.asarray((q * k).sum(axis=-1))
    standard_error = errors.std(axis=0, ddof=1) / sqrt(draws)
    assert np.abs(errors.mean(axis=0) / standard_error).max() < 3.5


def test_the_mse_form_shrinks_scores() -> None:
    q, k = gaussian(9, 64)[0, :2]
    k = k + q
    scores = np.asarray((q * k).sum(axis=-1))
    assert (_estimates("turbo2", q, k, 600).mean(axis=0) / scores).mean() < 0.97


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("dim", [64, 80])
def test_fitted_scales_do_not_shrink_and_lose_less(bits: int, dim: int) -> None:
    x = with_outliers(33, dim)
    fitted, plain = (codec(name, seed=2) for name in (f"turbo{bits}u", f"turbo{bits}"))
    decoded = fitted.decode(fitted.encode(x))
    along = (decoded * x).sum(axis=-1) / (x * x).sum(axis=-1)
    assert mx.allclose(along, mx.ones_like(along), atol=1e-3)
    assert fitted.shapes(33, dim) == plain.shapes(33, dim)
    assert relative_error(decoded, x) < relative_error(plain.decode(plain.encode(x)), x)
