"""Repacked tensors against gguf-py's dequantize, block by block."""

import tracemalloc

import gguf
import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import GGUFError
from models.gguf.header import TensorInfo
from models.gguf.repack import Quantized, Unquantized, repack, stored_bits
from models.gguf.tensor_types import TensorType
from tests.gguf_factory import quantize
from tests.repack_error import added_error

EXACT = [
    TensorType.Q4_0,
    TensorType.Q4_1,
    TensorType.Q5_0,
    TensorType.Q5_1,
    TensorType.Q8_0,
    TensorType.IQ4_NL,
]
SCALED = [TensorType.Q4_K, TensorType.Q5_K, TensorType.IQ4_XS]
MERGED = [TensorType.Q2_K, TensorType.Q3_K, TensorType.Q6_K]
QUANTIZED = EXACT + SCALED + MERGED
ROWS, BLOCKS = 13, 3

# Where the float16 fields of a block lie.
FLOATS = {
    TensorType.Q4_0: (0,),
    TensorType.Q4_1: (0, 2),
    TensorType.Q5_0: (0,),
    TensorType.Q5_1: (0, 2),
    TensorType.Q8_0: (0,),
    TensorType.Q2_K: (80, 82),
    TensorType.Q3_K: (108,),
    TensorType.Q4_K: (0, 2),
    TensorType.Q5_K: (0, 2),
    TensorType.Q6_K: (208,),
    TensorType.IQ4_NL: (0,),
    TensorType.IQ4_XS: (0,),
}

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def random_blocks(kind: TensorType, seed: int, *, rows: int = ROWS, top: float = 0.02) -> Bytes:
    """Every bit of a block random, but for its float16 fields: up to `top`."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (rows * BLOCKS, kind.block_bytes), np.uint8)
    for at in FLOATS[kind]:
        low = -top if kind in EXACT or len(FLOATS[kind]) == 1 else 0
        values = rng.uniform(low, top, len(data)).astype(np.float16)
        data[:, at : at + 2] = values[:, None].view(np.uint8)
    return data.reshape(rows, -1)


def with_float(blocks: Bytes, kind: TensorType, field: int, value: float) -> Bytes:
    changed = blocks.copy()
    at = FLOATS[kind][field]
    changed[-1, -kind.block_bytes :][at : at + 2] = np.array([value], np.float16).view(np.uint8)
    return changed


def info_of(kind: TensorType, rows: Bytes, name: str = "blk.7.ffn_up.weight") -> TensorInfo:
    columns = rows.shape[1] // kind.block_bytes * kind.block_size
    return TensorInfo(
        name=name, shape=(len(rows), columns), type=kind, offset=0, nbytes=rows.nbytes
    )


def repack_rows(kind: TensorType, rows: Bytes) -> Quantized:
    packed = repack(info_of(kind, rows), rows)
    assert isinstance(packed, Quantized)
    return packed


def mlx_weights(packed: Quantized) -> Floats:
    """What MLX itself reads from the arrays, in float32."""
    weights = mx.dequantize(
        packed.weight,
        packed.scales.astype(mx.float32),
        packed.biases.astype(mx.float32),
        group_size=packed.group_size,
        bits=packed.bits,
    )
    return np.asarray(weights)


def oracle(kind: TensorType, rows: Bytes) -> Floats:
    weights: Floats = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(int(kind)))
    return weights


def group_bound(kind: TensorType, packed: Quantized) -> Floats:
    """Largest error a weight of each group may have, [rows, columns]."""
    scales = np.abs(np.asarray(packed.scales.astype(mx.float32)))
    biases = np.abs(np.asarray(packed.biases.astype(mx.float32)))
    top = (1 << packed.bits) - 1
    # float16 rounds to 2**-11 of a value, and to 2**-25 at the least.
    rounding = (scales * top + biases) * 2.0**-11 + (top + 1) * 2.0**-25
    # Half a step for codes that were rounded, and up to as much again where
    # two scales of opposite sign would need one code more than there are.
    step = {TensorType.Q2_K: 0.55, TensorType.Q3_K: 1.1, TensorType.Q6_K: 1.2}.get(kind, 0)
    bound: Floats = np.repeat(step * scales + rounding, 32, axis=1)
    return bound


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
def test_simple_types_are_exact(kind: TensorType, seed: int) -> None:
    rows = random_blocks(kind, seed)
    expected = oracle(kind, rows)
    np.testing.assert_allclose(
        mlx_weights(repack_rows(kind, rows)),
        expected,
        rtol=3e-7,
        atol=1e-6 * np.abs(expected).max(),
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", SCALED + MERGED, ids=lambda kind: kind.name)
def test_k_types_stay_within_their_bound(kind: TensorType, seed: int) -> None:
    rows = random_blocks(kind, seed)
    packed = repack_rows(kind, rows)
    error = np.abs(mlx_weights(packed) - oracle(kind, rows))
    assert (error <= group_bound(kind, packed)).all()
    assert error.max() > 0


@settings(max_examples=60)
@given(
    kind=st.sampled_from(QUANTIZED),
    seed=st.integers(0, 99),
    patterns=st.lists(st.integers(0, 0xFFFF), min_size=1, max_size=6),
)
def test_any_float16_is_kept_or_refused(kind: TensorType, seed: int, patterns: list[int]) -> None:
    """Subnormal, negative, huge, NaN: within the bound, or a clear error."""
    rows = random_blocks(kind, seed)
    blocks = rows.reshape(-1, kind.block_bytes)
    for at in FLOATS[kind]:
        values = np.resize(np.array(patterns, np.uint16), len(blocks))
        blocks[:, at : at + 2] = values[:, None].view(np.uint8)
    try:
        packed = repack_rows(kind, rows)
    except GGUFError:
        # No block multiplies its float16 by more than 4096.
        assert max(pattern & 0x7FFF for pattern in patterns) > np.float16(15).view(np.uint16)
        return
    error = np.abs(mlx_weights(packed) - oracle(kind, rows))
    assert (error <= group_bound(kind, packed)).all()


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_arrays_are_what_quantized_matmul_takes(kind: TensorType) -> None:
    rows = random_blocks(kind, 5)
    packed = repack_rows(kind, rows)
    columns = BLOCKS * kind.block_size
    assert packed.bits == stored_bits(kind)
    assert (packed.weight.shape, packed.weight.dtype) == (
        (ROWS, columns * packed.bits // 32),
        mx.uint32,
    )
    for array in (packed.scales, packed.biases):
        assert (array.shape, array.dtype) == ((ROWS, columns // 32), mx.float16)
    x = np.random.default_rng(1).standard_normal((2, columns), np.float32)
    product = mx.quantized_matmul(
        mx.array(x),
        packed.weight,
        packed.scales.astype(mx.float32),
        packed.biases.astype(mx.float32),
        transpose=True,
        group_size=packed.group_size,
        bits=packed.bits,
    )
    np.testing.assert_allclose(np.asarray(product), x @ mlx_weights(packed).T, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("byte", [0x00, 0xFF, 0x0F, 0xF0, 0x80, 0x7F])
def test_extreme_codes_and_scales(kind: TensorType, byte: int) -> None:
    rows = np.full((3, BLOCKS * kind.block_bytes), byte, np.uint8)
    for block in range(BLOCKS):
        for at in FLOATS[kind]:
            here = block * kind.block_bytes + at
            rows[:, here : here + 2] = np.array([0.0123], np.float16).view(np.uint8)
    packed = repack_rows(kind, rows)
    error = np.abs(mlx_weights(packed) - oracle(kind, rows))
    assert (error <= group_bound(kind, packed)).all()


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_all_zero_blocks_give_zeros(kind: TensorType) -> None:
    rows = np.zeros((3, BLOCKS * kind.block_bytes), np.uint8)
    assert not mlx_weights(repack_rows(kind, rows)).any()


@pytest.mark.parametrize("kind", [TensorType.Q3_K, TensorType.Q6_K], ids=lambda kind: kind.name)
def test_sub_block_with_the_larger_scale_is_exact(kind: TensorType) -> None:
    rows = random_blocks(kind, 11)
    expected = oracle(kind, rows).reshape(-1, 2, 16)
    got = mlx_weights(repack_rows(kind, rows)).reshape(-1, 2, 16)
    exact = np.isclose(got, expected, rtol=2.0**-10, atol=1e-7).all(axis=2)
    assert np.all(np.any(exact, axis=1))


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_many_pieces_equal_their_parts(kind: TensorType) -> None:
    """A tensor larger than what is read at a time, its rows in order."""
    unique = random_blocks(kind, 3, rows=7)
    order = np.random.default_rng(0).integers(0, 7, 600_000 // unique.shape[1] + 1)
    whole = repack_rows(kind, unique[order])
    part = repack_rows(kind, unique)
    for name in ("weight", "scales", "biases"):
        assert (np.asarray(getattr(whole, name)) == np.asarray(getattr(part, name))[order]).all()


def test_memory_is_the_output_and_a_few_pieces() -> None:
    kind = TensorType.Q6_K
    rows = np.tile(random_blocks(kind, 3, rows=7), (6007, 1))
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    tracemalloc.start()
    try:
        packed = repack_rows(kind, rows)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    output = packed.weight.nbytes + packed.scales.nbytes + packed.biases.nbytes
    assert mx.get_peak_memory() - before <= output + (1 << 20)
    assert peak < 8 * 8 * (1 << 20)
    assert rows.nbytes < output < 1.4 * rows.nbytes


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_scales_that_are_not_finite_are_refused(kind: TensorType, value: float) -> None:
    blocks = random_blocks(kind, 2)
    for field in range(len(FLOATS[kind])):
        rows = with_float(blocks, kind, field, value)
        with pytest.raises(GGUFError, match=r"blk\.7\.ffn_up\.weight.*NaN, infinite or beyond"):
            repack(info_of(kind, rows), rows)


@pytest.mark.parametrize(
    "kind", [kind for kind in QUANTIZED if kind not in (TensorType.Q4_1, TensorType.Q5_1)]
)
def test_scales_that_leave_float16_are_refused(kind: TensorType) -> None:
    rows = with_float(random_blocks(kind, 2), kind, -1, 60000)
    with pytest.raises(GGUFError, match="beyond float16"):
        repack(info_of(kind, rows), rows)


def test_unquantized_types_keep_type_and_values() -> None:
    values = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    for kind, dtype in [
        (TensorType.F32, mx.float32),
        (TensorType.F16, mx.float16),
        (TensorType.BF16, mx.bfloat16),
    ]:
        rows = quantize(values, kind)
        packed = repack(info_of(kind, rows), rows)
        assert isinstance(packed, Unquantized)
        assert (packed.array.dtype, packed.array.shape) == (dtype, (5, 7))
        got = np.asarray(packed.array.astype(mx.float32))
        assert (got == oracle(kind, rows).reshape(5, 7)).all()


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [TensorType.F32, TensorType.F16, TensorType.BF16])
@pytest.mark.parametrize("place", [0, 17, 34])
def test_unquantized_weights_that_are_not_finite_are_refused(
    kind: TensorType, value: float, place: int
) -> None:
    values = np.random.default_rng(1).standard_normal((5, 7)).astype(np.float32)
    values.flat[place] = value
    bits = np.asarray(mx.array(values).astype(mx.bfloat16).view(mx.uint16))
    rows = bits.view(np.uint8) if kind is TensorType.BF16 else quantize(values, kind)
    with pytest.raises(GGUFError, match=r"blk\.7\.ffn_up\.weight.*a weight is NaN or infinite"):
        repack(info_of(kind, rows), rows)


def test_the_largest_unquantized_weights_are_taken() -> None:
    for kind, largest in ((TensorType.F32, 3.4e38), (TensorType.F16, 65504)):
        rows = quantize(np.array([[largest, -largest, 0.0]], np.float32), kind)
        packed = repack(info_of(kind, rows), rows)
        assert isinstance(packed, Unquantized)
        assert packed.array[0, 1].item() == pytest.approx(-largest)


def test_vector_keeps_its_one_axis() -> None:
    rows = np.arange(11, dtype=np.float32).view(np.uint8)[None]
    info = TensorInfo(name="norm", shape=(11,), type=TensorType.F32, offset=0, nbytes=44)
    packed = repack(info, rows)
    assert isinstance(packed, Unquantized)
    assert packed.array.tolist() == list(range(11))


def test_bytes_must_match_the_shape() -> None:
    rows = random_blocks(TensorType.Q4_K, 0)
    with pytest.raises(GGUFError, match=r"blk\.7\.ffn_up\.weight.*expected"):
        repack(info_of(TensorType.Q4_K, rows), rows[:-1])


@pytest.mark.parametrize(
    ("kind", "bound"),
    [
        (TensorType.Q4_0, 1e-6),
        (TensorType.Q8_0, 1e-6),
        (TensorType.IQ4_NL, 1e-6),
        (TensorType.IQ4_XS, 1e-3),
        (TensorType.Q4_K, 1e-3),
        (TensorType.Q5_K, 1e-3),
        (TensorType.Q6_K, 6e-3),
        (TensorType.Q3_K, 3.5e-2),
        (TensorType.Q2_K, 7e-2),
    ],
)
def test_products_of_gaussian_weights(kind: TensorType, bound: float) -> None:
    assert added_error(kind).output <= bound


@pytest.mark.parametrize("kind", MERGED, ids=lambda kind: kind.name)
def test_merging_adds_little_to_the_type_s_own_error(kind: TensorType) -> None:
    error = added_error(kind)
    assert error.output**2 < 0.05 * error.own**2
