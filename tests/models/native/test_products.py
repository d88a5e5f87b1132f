"""Each product against MLX's dequantized weights in float64."""

import numpy as np
import numpy.typing as npt
import pytest

from kvcache import CacheError
from models.native.kernels import Kernels
from models.native.packed import Weight
from tests.models.native.random_weight import Double, random_weight

ROWS = [1, 2, 7, 8, 9, 21]
FORMS = [(bits, group) for bits in (4, 5, 6, 8) for group in (32, 64)]
# 15 bits per group of 32 leave this much of the largest output, at worst.
TOLERANCE = 3e-4


def _activations(rows: int, columns: int) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(rows * columns)
    x = rng.normal(size=(rows, columns)).astype(np.float32)
    x[:, ::37] *= 50  # outlier channels, as networks have them
    return x


def _assert_close(got: npt.NDArray[np.float32], want: Double) -> None:
    assert np.abs(got - want).max() < TOLERANCE * np.abs(want).max()


@pytest.mark.parametrize(("bits", "group"), FORMS)
@pytest.mark.parametrize("columns", [64, 192, 576, 1088])
def test_linear(kernels: Kernels, bits: int, group: int, columns: int) -> None:
    for rows in ROWS:
        weight, exact = random_weight(53, columns, bits, group)
        x = _activations(rows, columns)
        _assert_close(kernels.linear(x, weight), x @ exact.T)


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
def test_columns_may_fill_half_a_chunk(kernels: Kernels, bits: int) -> None:
    for columns in (32, 96, 544):
        for rows in (1, 3, 11):
            weight, exact = random_weight(35, columns, bits, 32)
            x = _activations(rows, columns)
            _assert_close(kernels.linear(x, weight), x @ exact.T)


def test_many_rows_cross_blocks(kernels: Kernels) -> None:
    weight, exact = random_weight(37, 160, 4, 32)
    x = _activations(401, 160)
    _assert_close(kernels.linear(x, weight), x @ exact.T)


@pytest.mark.parametrize("rows", [2, 13])
def test_extremes_stay_finite(kernels: Kernels, rows: int) -> None:
    weight, exact = random_weight(33, 96, 8, 32)
    x = _activations(rows, 96)
    x[0] = 0
    assert (kernels.linear(x, weight)[0] == 0).all()
    for factor in (1e-25, 1e30):
        huge = (x.astype(np.float64) * factor).astype(np.float32)
        got = kernels.linear(huge, weight)
        assert np.isfinite(got).all()
        _assert_close(got, huge.astype(np.float64) @ exact.T)


def test_linear_add(kernels: Kernels) -> None:
    for rows in ROWS:
        weight, exact = random_weight(53, 96, 5, 32)
        x, residual = _activations(rows, 96), _activations(rows, 53)
        got = kernels.linear_add(x, weight, residual)
        _assert_close(got - residual, x @ exact.T)


def test_feed_forward(kernels: Kernels) -> None:
    eps = 1e-5
    gate, gate_exact = random_weight(160, 96, 4, 32, seed=1)
    up, up_exact = random_weight(160, 96, 6, 32, seed=2)
    down, down_exact = random_weight(96, 160, 8, 32, seed=3)
    norm = np.random.default_rng(4).uniform(0.5, 1.5, 96).astype(np.float32)
    for rows in ROWS:
        x = _activations(rows, 96)
        normed = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + eps) * norm
        gated = normed @ gate_exact.T
        hidden = gated / (1 + np.exp(-gated)) * (normed @ up_exact.T)
        got = kernels.feed_forward(x, norm, eps, gate, up, down)
        _assert_close(got - x, hidden @ down_exact.T)


@pytest.mark.parametrize("rows", [1, 13])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_hidden(kernels: Kernels, rows: int, bad: float) -> None:
    weight, _ = random_weight(33, 96, 4, 32)
    x = _activations(rows, 96)
    x[-1, 40] = bad
    assert np.isnan(kernels.linear(x, weight)[-1]).all()


def test_tiny_activations_vanish(kernels: Kernels) -> None:
    weight, _ = random_weight(33, 96, 4, 32)
    tiny = np.full((1, 96), 1e-40, np.float32)
    assert (np.abs(kernels.linear(tiny, weight)) < 1e-35).all()


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 1), (1, 5), (2, 11)])
def test_attention_inputs(kernels: Kernels, batch: int, length: int) -> None:
    dim, offset, eps = 32, 41, 1e-6
    q, q_exact = random_weight(5 * dim, 96, 4, 32, seed=1)
    k, k_exact = random_weight(2 * dim, 96, 4, 32, seed=2)
    v, v_exact = random_weight(2 * dim, 96, 8, 32, seed=3)
    norm = np.random.default_rng(4).uniform(0.5, 1.5, 96).astype(np.float32)
    periods = 10000.0 ** (np.arange(0, 24, 2) / 24)  # 24 of 32 dimensions turn
    x = _activations(batch * length, 96).reshape(batch, length, 96)
    got = kernels.attention_inputs(x, norm, eps, (q, k, v), dim=dim, periods=periods, offset=offset)
    normed = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + eps) * norm
    angles = np.arange(offset, offset + length)[:, None] / periods
    for out, exact, turns in zip(
        got, (q_exact, k_exact, v_exact), (True, True, False), strict=True
    ):
        heads = (normed @ exact.T).reshape(batch, length, -1, dim).swapaxes(1, 2)
        want = heads.copy()
        if turns:
            even, odd = heads[..., 0:24:2], heads[..., 1:24:2]
            want[..., 0:24:2] = even * np.cos(angles) - odd * np.sin(angles)
            want[..., 1:24:2] = even * np.sin(angles) + odd * np.cos(angles)
        assert out.shape == want.shape
        _assert_close(out, want)


@pytest.mark.parametrize(("bits", "group"), FORMS)
def test_embed(kernels: Kernels, bits: int, group: int) -> None:
    weight, exact = random_weight(53, 192, bits, group)
    ids = np.array([0, 52, 17, 17], np.int64)
    np.testing.assert_allclose(kernels.embed(ids, weight), exact[ids], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("ids", [[53], [-1]])
def test_ids_outside_the_table_are_refused(kernels: Kernels, ids: list[int]) -> None:
    weight, _ = random_weight(53, 64, 4, 32)
    with pytest.raises(CacheError, match="expected 0 to 52"):
        kernels.embed(np.array(ids, np.int64), weight)


def test_other_layouts_are_refused(kernels: Kernels) -> None:
    codes, scales = np.zeros((4, 12), np.uint32), np.zeros((4, 3), np.float16)
    with pytest.raises(CacheError, match="got 3 bits in groups of 32"):
        Weight(codes, scales, scales, bits=3, group=32)
    with pytest.raises(CacheError, match="got scales float32"):
        Weight(codes, scales.astype(np.float32), scales, bits=4, group=32)
    weight, _ = random_weight(4, 64, 4, 32)
    with pytest.raises(CacheError, match="not in C order"):
        kernels.linear(np.zeros((128, 2), np.float32).T[:, ::2], weight)
    with pytest.raises(CacheError, match=r"got x float32 \(2, 63\), expected float32 \[any, 64\]"):
        kernels.linear(np.zeros((2, 63), np.float32), weight)
