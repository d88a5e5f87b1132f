"""A few rows of x times blocks, by the kernel's text run here, against gguf-py's weights."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from kvcache.gpu.kernel import Call, Dialect, Launcher
from models.gguf.tensor_types import TensorType
from models.gpu.matrix import BlockLinear
from models.gpu.product import product
from tests.metal import cuda, registers
from tests.metal.build import Mode, find_compiler
from tests.metal.emulator import Emulator, Order
from tests.metal.generated import generate
from tests.metal.lint import lint
from tests.metal.matrices import ON_GPU, WITHOUT_GRID, held, rows_of, weights, wide
from tests.metal.products import ProductCase, columns_of, drawn, excess
from tests.metal.recording import Recorder

needs_clang = pytest.mark.skipif(
    find_compiler() is None, reason="needs clang++ 18 or newer on x86-64 Linux"
)
needs_nvrtc = pytest.mark.skipif(
    not cuda.is_available(), reason="needs the dependency group nvrtc (Linux, x86-64)"
)
DTYPES = (mx.float32, mx.float16, mx.bfloat16)
LINE = 128


# A step and a part of one, of every type.
CASES = {
    f"{kind.name} x{inputs}": ProductCase(
        kind=kind,
        inputs=inputs,
        columns=columns_of(kind, columns),
        dtype=DTYPES[(number + inputs) % 3],
        biased=inputs > 1,
    )
    for number, kind in enumerate(ON_GPU)
    for inputs, columns in ((1, 2304), (3 + 5 * (number % 2), 1312))
} | {
    "a block": ProductCase(rows=1, last=1, columns=256),
    "a block of 32": ProductCase(kind=TensorType.Q8_0, rows=1, last=1, columns=32, inputs=2),
    "a step": ProductCase(columns=1024),
    "a large step": ProductCase(kind=TensorType.Q2_K, columns=2048, inputs=2),
    "columns of SmolLM2": ProductCase(kind=TensorType.Q4_1, columns=576, rows=49, last=49),
    "many columns": ProductCase(columns=11264, inputs=5, biased=True),
    "a part": ProductCase(first=4, last=9, rows=13, biased=True),
    "a part of planes": ProductCase(kind=TensorType.Q3_K, first=5, last=7, inputs=4),
    "the last row": ProductCase(kind=TensorType.Q6_K, first=10, inputs=8, biased=True),
    **{
        f"{inputs} rows of {dtype}": ProductCase(
            kind=TensorType.Q5_0, inputs=inputs, columns=160, dtype=dtype, rows=33, last=33
        )
        for inputs in (2, 4, 6, 7)
        for dtype in DTYPES
    },
    **{
        f"{kind.name} of {columns}": ProductCase(kind=kind, columns=columns, inputs=inputs)
        for kind in (TensorType.F32, TensorType.F16, TensorType.BF16)
        for columns, inputs in ((1, 1), (37, 3))
    },
}


def check(case: ProductCase, launch: Launcher) -> None:
    assert excess(case, launch).max() < 1


@needs_clang
@pytest.mark.parametrize("name", CASES)
def test_products_are_exact(name: str) -> None:
    check(CASES[name], Emulator())


@needs_clang
@pytest.mark.parametrize("order", [Order.BACKWARD, Order.RANDOM])
@pytest.mark.parametrize("kind", ON_GPU, ids=lambda kind: kind.name)
def test_in_any_order_as_cuda(kind: TensorType, order: Order) -> None:
    inputs = 1 if order is Order.BACKWARD else 4
    case = ProductCase(kind=kind, columns=columns_of(kind, 1312), inputs=inputs, biased=True)
    check(case, Emulator(dialect=Dialect.CUDA, order=order))


@needs_clang
@pytest.mark.parametrize("kind", ON_GPU, ids=lambda kind: kind.name)
def test_nothing_beyond_its_memory_is_touched(kind: TensorType) -> None:
    """Neither blocks nor x, at the end of both."""
    columns = columns_of(kind, 1056)
    case = ProductCase(kind=kind, rows=5, last=5, columns=columns, dtype=mx.float16)
    inputs = 1 + 2 * (kind % 2)
    check(replace(case, inputs=inputs, biased=True), Emulator(mode=Mode.MEMORY))


@needs_clang
@pytest.mark.parametrize("inputs", [1, 2, 8])
def test_no_races(inputs: int) -> None:
    case = ProductCase(kind=TensorType.Q6_K, rows=37, last=37, columns=512, inputs=inputs)
    check(case, Emulator(mode=Mode.RACES, order=Order.RANDOM))


# -- what is counted --


def counted(kind: TensorType, *, rows: int, columns: int, inputs: int) -> Emulator:
    """An emulator that has counted a product."""
    emulator = Emulator(mode=Mode.COUNTING)
    blocks = held(kind, rows_of(kind, rows=rows, columns=columns))
    product(emulator, blocks, mx.zeros((inputs, columns), mx.float16))
    return emulator


@needs_clang
@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        *((kind, 1) for kind in WITHOUT_GRID),
        *((TensorType.Q6_K, inputs) for inputs in (2, 4, 8)),
    ],
)
def test_each_byte_of_blocks_is_loaded_once(kind: TensorType, inputs: int) -> None:
    """Also with rows and columns that fill neither steps nor threadgroups."""
    columns = columns_of(kind, 1056)
    emulator = counted(kind, rows=37, columns=columns, inputs=inputs)
    assert emulator.loads["product", "blocks"] == 37 * columns // kind.block_size * kind.block_bytes


@needs_clang
@pytest.mark.parametrize("inputs", [1, 8])
@pytest.mark.parametrize("kind", [TensorType.IQ2_S, TensorType.IQ3_S])
def test_a_run_of_a_grid_is_two_bytes_more(kind: TensorType, inputs: int) -> None:
    emulator = counted(kind, rows=48, columns=2048, inputs=inputs)
    each = 8 if kind.name.startswith("IQ2") else 4
    blocks, runs = 48 * 8 * kind.block_bytes, 48 * 2048 // each
    assert emulator.loads["product", "blocks"] == blocks + 2 * runs


@needs_clang
@pytest.mark.parametrize("kind", WITHOUT_GRID, ids=lambda kind: kind.name)
def test_a_load_of_a_simdgroup_touches_neighbouring_lines(kind: TensorType) -> None:
    """As many lines as the bytes fill, and a fifth; a quarter where scales of a step are few."""
    columns = 2048
    lines = counted(kind, rows=16, columns=columns, inputs=1).lines["product", "blocks"]
    filled = 16 * columns // kind.block_size * kind.block_bytes / LINE
    few = kind in (TensorType.Q3_K, TensorType.Q6_K)
    assert filled <= lines <= filled * (1.25 if few else 1.2)


@needs_clang
@pytest.mark.parametrize(("inputs", "times"), [(1, 12), (2, 3), (4, 2), (8, 3)])
def test_rows_of_x_are_loaded_for_several_rows_of_the_matrix(inputs: int, times: int) -> None:
    """One by each simdgroup of four rows; several by each threadgroup, of 16 to 24 rows."""
    emulator = counted(TensorType.Q4_K, rows=48, columns=1280, inputs=inputs)
    assert emulator.loads["product", "x"] == times * inputs * 1280 * 2


@needs_nvrtc
@pytest.mark.parametrize("kind", ON_GPU, ids=lambda kind: kind.name)
def test_registers(kind: TensorType) -> None:
    """Of every fourth template, others for each type."""
    for call in registers.matrix_calls(kind)[kind % 4 :: 4]:
        found, reasons = registers.excess(call)
        assert reasons == [], call.constants
        assert found.registers <= (48 if call.kernel.stem == "rows" else registers.MOST_REGISTERS)


def call_of(case: ProductCase) -> Call:
    recorder = Recorder()
    blocks = held(case.kind, rows_of(case.kind, rows=case.rows, columns=case.columns))
    product(recorder, blocks, *drawn(case))
    (call,) = recorder.calls
    return call


@needs_clang
@pytest.mark.parametrize("kind", ON_GPU, ids=lambda kind: kind.name)
def test_address_spaces(kind: TensorType) -> None:
    for inputs, dtype in ((1, mx.float16), (4, mx.bfloat16), (8, mx.float32)):
        case = ProductCase(kind=kind, columns=256, inputs=inputs, dtype=dtype)
        assert lint(generate(call_of(case))) == []


def test_lengths_are_no_constants() -> None:
    """Text and template, what MLX compiles anew for, are those of any other size."""
    cases = ProductCase(inputs=5), ProductCase(rows=300, last=300, columns=512, inputs=8)
    made = [generate(call_of(case)) for case in cases]
    assert len({(each.text, each.template) for each in made}) == 1


# -- the module --


@pytest.mark.parametrize("shape", [(1, 1), (1, 8), (8, 1), (2, 3), (5,), ()], ids=str)
@pytest.mark.parametrize("biased", [True, False])
def test_a_matrix_is_one_launch_whatever_the_shape(shape: tuple[int, ...], biased: bool) -> None:
    recorder = Recorder()
    linear = linear_of(recorder, biased=biased)
    for _ in range(2):
        y = linear(mx.zeros((*shape, 512), mx.float16))
        assert (y.shape, y.dtype) == ((*shape, 7), mx.float16)
    first, second = recorder.calls
    assert first.inputs[1:] == second.inputs[1:]  # what is worked out once
    assert first.inputs[0] is not second.inputs[0]


def linear_of(launch: Launcher, *, biased: bool) -> BlockLinear:
    blocks = held(TensorType.Q5_K, rows_of(TensorType.Q5_K, rows=7, columns=512))
    return BlockLinear(blocks, mx.arange(7.0) if biased else None, launch=launch)


@needs_clang
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(1, 3), (2, 9)], ids=str)
def test_a_matrix_multiplies(shape: tuple[int, ...], biased: bool) -> None:
    linear = linear_of(Emulator(), biased=biased)
    x = mx.random.normal((*shape, 512), key=mx.random.key(1))
    matrix = weights(TensorType.Q5_K, rows_of(TensorType.Q5_K, rows=7, columns=512))
    want = wide(x) @ matrix.T + (np.arange(7) if biased else 0)
    np.testing.assert_allclose(wide(linear(x)), want, rtol=0, atol=1e-4)


def test_what_a_matrix_says_of_itself() -> None:
    linear = linear_of(Recorder(), biased=True)
    assert (linear.rows, linear.columns, linear.nbytes) == (7, 512, 7 * 2 * 176)
    assert set(linear.parameters()) == {"weight", "bias"}
