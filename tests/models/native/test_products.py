"""Each product against gguf-py's dequantized weights in float64."""

from collections.abc import Callable
from ctypes import POINTER, Structure, c_int, c_int64
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kvcache import CacheError
from kvcache.native import build
from kvcache.native.library import Library
from models.gguf.tensor_types import TensorType
from models.native.kernels import Kernels, products
from models.native.packed import (
    Addition,
    FeedForward,
    Inputs,
    Norm,
    Rope,
    Temperature,
    Weight,
)
from tests.models.native.random_weight import Double, random_weight

ROWS = [*range(1, 10), 33]
TYPES = list(TensorType)
Q4_1, Q5_1, Q8_0 = TensorType.Q4_1, TensorType.Q5_1, TensorType.Q8_0
# 15 bits per group of 32 leave this much of the largest output, at worst.
TOLERANCE = 3e-4
# Of `Form`, activations.h.
FLOATS = 0
FLOAT_TYPES = {TensorType.F32, TensorType.F16, TensorType.BF16}
MAX_CODE = 127 * 128 + 63
# Of the sum of all magnitudes: roundings to 24 bits, one after the other.
ROUNDING = 32 * 2.0**-24


class Kind(Structure):
    """The beginning of kinds.h's."""

    _fields_ = (("block_bytes", c_int64), ("few", c_int), ("many", c_int))


def _columns(kind: TensorType) -> tuple[int, ...]:
    """Such as fill vectors, and such as fill them in part."""
    if kind.block_size == 1:
        return (1, 33, 96, 577, 1088)
    if kind.block_size == 32:
        return (32, 96, 192, 544, 1088)
    return (256, 512, 768, 2304)


def _activations(rows: int, columns: int) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(rows * columns)
    x = rng.normal(size=(rows, columns)).astype(np.float32)
    x[:, ::37] *= 50  # outlier channels, as networks have them
    return x


def _assert_close(got: npt.NDArray[np.float32], want: Double) -> None:
    assert np.abs(got - want).max() < TOLERANCE * np.abs(want).max()


def _represented(x: npt.NDArray[np.float32], product: type[np.floating]) -> Double:
    """What integer products take x [rows, columns] for: codes of 15 bits for 32 columns.

    product: of x and the inverse of a scale, which a compiler may round once or twice.
    """
    groups = x.reshape(len(x), -1, 32)
    top = np.abs(groups).max(-1, keepdims=True)
    codes = np.rint(groups.astype(product) * (np.float32(MAX_CODE) / top).astype(product))
    scales = (top / np.float32(MAX_CODE)).astype(np.float64)
    return np.asarray((scales * codes).reshape(x.shape))


def _assert_exact(got: npt.NDArray[np.float32], x: npt.NDArray[np.float32], exact: Double) -> None:
    """But for the rounding of a sum in float32: of x as it is, or as integers represent it."""
    taken = [x.astype(np.float64)]
    if x.shape[1] % 32 == 0:
        taken += [_represented(x, product) for product in (np.float32, np.float64)]
    rounding = ROUNDING * (np.abs(taken[0]) @ np.abs(exact).T + np.finfo(np.float32).tiny)
    assert min((np.abs(got - each @ exact.T) / rounding).max() for each in taken) < 1


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_linear(kernels: Kernels, kind: TensorType) -> None:
    for columns in _columns(kind):
        weight, exact = random_weight(53, columns, kind)
        for rows in ROWS:
            x = _activations(rows, columns)
            _assert_exact(kernels.linear(x, weight), x, exact)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_a_row_among_a_few_is_to_the_last_bit_what_it_is_alone(
    kernels: Kernels, kind: TensorType
) -> None:
    """Or drafts that are tried together would change an answer."""
    for columns in _columns(kind):
        weight, _ = random_weight(55, columns, kind)
        x = _activations(8, columns)
        alone = np.concatenate([kernels.linear(x[at : at + 1], weight) for at in range(8)])
        for rows in range(2, 9):
            assert np.array_equal(kernels.linear(x[:rows], weight), alone[:rows]), (columns, rows)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_many_rows_cross_blocks(kernels: Kernels, kind: TensorType) -> None:
    weight, exact = random_weight(37, 256, kind)
    x = _activations(401, 256)
    _assert_exact(kernels.linear(x, weight), x, exact)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_weights_of_few_rows(kernels: Kernels, kind: TensorType) -> None:
    for weight_rows in (1, 15, 17, 33):
        weight, exact = random_weight(weight_rows, 256, kind)
        for rows in (1, 3, 6, 193):
            x = _activations(rows, 256)
            _assert_exact(kernels.linear(x, weight), x, exact)


@pytest.mark.parametrize("columns", [96, 608])
@pytest.mark.parametrize("rows", [2, 13])
def test_extremes_stay_finite(kernels: Kernels, rows: int, columns: int) -> None:
    weight, exact = random_weight(33, columns, Q8_0)
    x = _activations(rows, columns)
    x[0] = 0
    assert (kernels.linear(x, weight)[0] == 0).all()
    for factor in (1e-25, 1e30):
        huge = (x.astype(np.float64) * factor).astype(np.float32)
        got = kernels.linear(huge, weight)
        assert np.isfinite(got).all()
        _assert_close(got, huge.astype(np.float64) @ exact.T)


def _rms(x: npt.NDArray[Any], weight: npt.NDArray[np.float32], eps: float) -> Double:
    wide = x.astype(np.float64)
    return np.asarray(wide / np.sqrt((wide**2).mean(-1, keepdims=True) + eps) * weight)


@pytest.mark.parametrize("kind", [TensorType.F32, Q4_1, Q5_1])
@pytest.mark.parametrize("rows", [*ROWS, 401])
def test_a_bias_is_added_to_each_row(kernels: Kernels, kind: TensorType, rows: int) -> None:
    added = np.linspace(-9, 7, 53).astype(np.float32)
    weight, exact = random_weight(53, 96, kind, added=added)
    x = _activations(rows, 96)
    _assert_close(kernels.linear(x, weight), x @ exact.T + added)


@pytest.mark.parametrize("rows", ROWS)
def test_add(kernels: Kernels, rows: int) -> None:
    added = np.linspace(-2, 3, 53).astype(np.float32)
    weight, exact = random_weight(53, 96, Q5_1, added=added)
    norm = np.random.default_rng(4).uniform(0.5, 1.5, 53).astype(np.float32)
    x, residual = _activations(rows, 96), _activations(rows, 53)
    product, normed = x @ exact.T + added, Norm(weight=norm, eps=1e-5)
    got = kernels.add(x, Addition(weight), residual)
    _assert_close(got - residual, product)
    got = kernels.add(x, Addition(weight, scale=0.22), residual)
    _assert_close(got - residual, 0.22 * product)
    got = kernels.add(x, Addition(weight, norm=normed, scale=-3), residual)
    _assert_close(got - residual, -3 * _rms(product, norm, 1e-5))


def _silu(x: Double) -> Double:
    return np.asarray(x / (1 + np.exp(-x)))


def _gelu(x: Double) -> Double:
    return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("normed", ["before", "after", "before and after"])
def test_feed_forward(kernels: Kernels, normed: str, gelu: bool, rows: int) -> None:
    eps, rng = 1e-5, np.random.default_rng(4)
    added = rng.normal(size=160).astype(np.float32)
    gate, gate_exact = random_weight(160, 96, Q4_1, seed=1, added=added)
    up, up_exact = random_weight(160, 96, TensorType.Q5_0, seed=2)
    down, down_exact = random_weight(96, 160, Q8_0, seed=3)
    before, after = (rng.uniform(0.5, 1.5, 96).astype(np.float32) for _ in range(2))
    weights = FeedForward(
        gate,
        up,
        Addition(down, norm=Norm(weight=after, eps=eps) if "after" in normed else None),
        norm=Norm(weight=before, eps=eps) if "before" in normed else None,
        gelu=gelu,
    )
    x = _activations(rows, 96)
    taken = _rms(x, before, eps) if "before" in normed else x.astype(np.float64)
    act = _gelu if gelu else _silu
    want = (act(taken @ gate_exact.T + added) * (taken @ up_exact.T)) @ down_exact.T
    if "after" in normed:
        want = _rms(want, after, eps)
    _assert_close(kernels.feed_forward(x, weights) - x, want)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("width", [1, 37, 172])
def test_feed_forward_of_floats_has_any_width(
    kernels: Kernels, width: int, gelu: bool, rows: int
) -> None:
    gate, gate_exact = random_weight(width, 96, TensorType.F32, seed=1)
    up, up_exact = random_weight(width, 96, TensorType.F16, seed=2)
    down, down_exact = random_weight(96, width, TensorType.BF16, seed=3)
    x = _activations(rows, 96)
    act = _gelu if gelu else _silu
    want = (act(x @ gate_exact.T) * (x @ up_exact.T)) @ down_exact.T
    got = kernels.feed_forward(x, FeedForward(gate, up, Addition(down), gelu=gelu))
    _assert_close(got - x, want)


@pytest.mark.parametrize("columns", [96, 608])
@pytest.mark.parametrize("rows", [1, 13])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_hidden(
    kernels: Kernels, rows: int, bad: float, columns: int
) -> None:
    weight, _ = random_weight(33, columns, Q4_1)
    x = _activations(rows, columns)
    x[-1, 40] = bad
    assert not np.isfinite(kernels.linear(x, weight)[-1]).any()


@pytest.mark.parametrize("columns", [96, 608])
def test_tiny_activations_vanish(kernels: Kernels, columns: int) -> None:
    weight, _ = random_weight(33, columns, Q4_1)
    tiny = np.full((1, columns), 1e-40, np.float32)
    assert (np.abs(kernels.linear(tiny, weight)) < 1e-35).all()


def _turned(heads: Double, periods: Double, offset: int, *, apart: bool) -> Double:
    """Heads [B, H, L, D] as rope turns them."""
    pairs, out = len(periods), heads.copy()
    angles = np.arange(offset, offset + heads.shape[2])[:, None] / periods
    cos, sin = np.cos(angles), np.sin(angles)
    one, other = slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)
    if apart:
        one, other = slice(0, pairs), slice(pairs, 2 * pairs)
    a, b = heads[..., one], heads[..., other]
    out[..., one], out[..., other] = a * cos - b * sin, a * sin + b * cos
    return out


@dataclass(frozen=True, kw_only=True)
class _Case:
    """Where heads are made another way than Llama's."""

    dim: int = 32
    kv_heads: int = 2
    turning: int = 24
    apart: bool = False
    pre_norm: bool = True
    normed: str = ""  # "head", "row"
    factors: bool = False
    temperature: Temperature | None = None
    added: bool = False


CASES = {
    "llama": _Case(),
    "apart": _Case(apart=True),
    "all apart": _Case(apart=True, turning=32),
    "not turned": _Case(turning=0),
    "no pre-norm": _Case(pre_norm=False),
    "heads normed": _Case(normed="head", apart=True),
    "heads of odd vectors normed": _Case(normed="head", dim=24, kv_heads=4, turning=22),
    "rows normed": _Case(normed="row", pre_norm=False),
    "factors": _Case(factors=True, apart=True),
    "temperature": _Case(temperature=Temperature(scale=0.3, span=4), normed="head"),
    "biases": _Case(added=True, apart=True),
    "all": _Case(
        dim=256,
        kv_heads=1,
        turning=150,
        apart=True,
        normed="row",
        factors=True,
        temperature=Temperature(scale=0.1, span=7),
        added=True,
    ),
}


def _made(case: _Case, rng: np.random.Generator) -> tuple[Inputs, Callable[..., list[Double]]]:
    """For the kernels, and as numpy computes it of x [B, L, 96] from a position on."""
    dim, eps = case.dim, 1e-6

    def vector(size: int) -> npt.NDArray[np.float32]:
        return rng.uniform(0.5, 1.5, size).astype(np.float32)

    weights, exact, biases = [], [], []
    for heads, kind in ((3 * case.kv_heads, Q4_1), (case.kv_heads, Q5_1), (case.kv_heads, Q8_0)):
        bias = vector(heads * dim) if case.added else None
        weight, numbers = random_weight(heads * dim, 96, kind, seed=heads + kind, added=bias)
        weights.append(weight)
        exact.append(numbers)
        biases.append(0 if bias is None else bias.astype(np.float64))
    norm, factors = vector(96), np.ones(dim, np.float32)
    factors[: case.turning] = 1.7
    over = [dim, dim] if case.normed == "head" else [weight.rows for weight in weights[:2]]
    head_norms = [vector(size) for size in over]
    periods = 10000.0 ** (np.arange(0, case.turning, 2) / max(1, case.turning))
    inputs = Inputs(
        weights,
        dim=dim,
        norm=Norm(weight=norm, eps=eps) if case.pre_norm else None,
        query_norm=Norm(weight=head_norms[0], eps=eps) if case.normed else None,
        key_norm=Norm(weight=head_norms[1], eps=eps) if case.normed else None,
        rope=Rope(periods=periods, apart=case.apart) if case.turning else None,
        query_factors=factors if case.factors else None,
        temperature=case.temperature,
    )

    def wanted(x: npt.NDArray[np.float32], offset: int) -> list[Double]:
        taken = _rms(x, norm, eps) if case.pre_norm else x.astype(np.float64)
        positions, outs = offset + np.arange(x.shape[1]), []
        for i in range(3):
            rows = taken @ exact[i].T + biases[i]
            if case.normed == "row" and i < 2:
                rows = _rms(rows, head_norms[i], eps)
            heads = rows.reshape(*x.shape[:2], -1, dim).swapaxes(1, 2)
            if case.normed == "head" and i < 2:
                heads = _rms(heads, head_norms[i], eps)
            if i < 2:
                heads = _turned(heads, periods, offset, apart=case.apart)
            if i == 0 and case.factors:
                heads = heads * factors
            if i == 0 and (by := case.temperature):
                heads = heads * (1 + by.scale * np.log(1 + positions // by.span))[:, None]
            outs.append(heads)
        return outs

    return inputs, wanted


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 1), (1, 5), (2, 11)])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_attention_inputs(kernels: Kernels, case: _Case, batch: int, length: int) -> None:
    inputs, wanted = _made(case, np.random.default_rng(4))
    x = _activations(batch * length, 96).reshape(batch, length, 96)
    starts = (41, 7, 300)[:batch]
    outs = kernels.attention_inputs(x, inputs, starts=starts)
    for row, start in enumerate(starts):
        own = slice(row, row + 1)
        for out, expected in zip(outs, wanted(x[own], start), strict=True):
            assert out[own].shape == expected.shape
            _assert_close(out[own], expected)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_embed(kernels: Kernels, kind: TensorType) -> None:
    weight, exact = random_weight(53, 768, kind)
    ids = np.array([0, 52, 17, 17], np.int64)
    assert (kernels.embed(ids, weight) == exact[ids]).all()
    got = kernels.embed(ids, weight, factor=12.5)
    np.testing.assert_allclose(got, 12.5 * exact[ids], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ids", [[53], [-1]])
def test_ids_outside_the_table_are_refused(kernels: Kernels, ids: list[int]) -> None:
    weight, _ = random_weight(53, 64, Q4_1)
    with pytest.raises(CacheError, match="expected 0 to 52"):
        kernels.embed(np.array(ids, np.int64), weight)


def test_other_layouts_are_refused(kernels: Kernels) -> None:
    with pytest.raises(CacheError, match=r"got rows of 48 bytes, expected blocks of 18 \(Q4_0\)"):
        Weight(np.zeros((4, 48), np.uint8), kind=TensorType.Q4_0)
    weight, _ = random_weight(4, 64, Q4_1)
    with pytest.raises(CacheError, match="not in C order"):
        kernels.linear(np.zeros((128, 2), np.float32).T[:, ::2], weight)
    with pytest.raises(CacheError, match=r"got x float32 \(2, 63\), expected float32 \[any, 64\]"):
        kernels.linear(np.zeros((2, 63), np.float32), weight)


def test_types_meet_activations_by_products_of_their_own(library: Library) -> None:
    # Else each row is decoded first, 25 times slower. Grids are looked up by AVX-512's tables.
    decoded = {kind for kind in TensorType if _form_of_few(kind, library) == FLOATS}
    grids = {kind for kind in TensorType if kind.name.startswith(("IQ2", "IQ3"))}
    has_tables = library.instructions == "AVX-512 VNNI"
    assert decoded - FLOAT_TYPES == (set() if has_tables else grids)


def _form_of_few(kind: TensorType, library: Library) -> int:
    find = build.load(products(kind).beside(library.sources)).network_kind
    find.restype = POINTER(Kind)
    return int(find().contents.few)
