"""Rows of blocks as numbers, by the kernel's text run here, against gguf-py."""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import pytest

from kvcache.gpu.kernel import Call, Dialect, Launcher
from models.gguf.tensor_types import TensorType
from models.gpu.rows import decoded, look_up
from tests.metal import cuda, registers
from tests.metal.build import Mode, find_compiler
from tests.metal.emulator import Emulator, Order
from tests.metal.generated import generate
from tests.metal.lint import lint
from tests.metal.matrices import BLOCKS_ON_GPU, ON_GPU, held, rows_of, weights, wide
from tests.metal.recording import Recorder
from tests.models.gguf.blocks import UNQUANTIZED

needs_clang = pytest.mark.skipif(
    find_compiler() is None, reason="needs clang++ 18 or newer on x86-64 Linux"
)
needs_nvrtc = pytest.mark.skipif(
    not cuda.is_available(), reason="needs the dependency group nvrtc (Linux, x86-64)"
)
# What a number of a dtype is rounded by, of itself.
ROUNDING = {mx.float32: 2.0**-22, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}


@dataclass(frozen=True, kw_only=True)
class RowsCase:
    """ids: None for all rows of those from `first` to `last`."""

    kind: TensorType = TensorType.Q4_K
    rows: int = 7
    columns: int = 1280
    first: int = 0
    last: int = 7
    ids: tuple[int, ...] | None = None
    factor: float = 1.0
    dtype: mx.Dtype = mx.float32


CASES = (
    {kind.name: RowsCase(kind=kind) for kind in ON_GPU}
    | {
        f"{kind.name}, by id": RowsCase(kind=kind, first=2, last=5, ids=(2, 0, 2, 1), factor=-3.5)
        for kind in ON_GPU
    }
    | {
        "a block": RowsCase(rows=1, last=1, columns=256),
        "columns of SmolLM2": RowsCase(kind=TensorType.Q8_0, columns=576),
        "a step exactly": RowsCase(columns=1024, rows=9, last=9),
        "one id": RowsCase(ids=(6,)),
        "ids of no row": RowsCase(ids=(-1, 7, 1 << 30, -(1 << 31), 3, 0, 6, 7, 8), first=1, last=5),
        "float16": RowsCase(dtype=mx.float16),
        "bfloat16": RowsCase(dtype=mx.bfloat16, kind=TensorType.Q6_K),
        "float16, by id": RowsCase(dtype=mx.float16, ids=(4, 1), factor=27.7),
    }
)


def found(case: RowsCase, launch: Launcher) -> tuple[np.ndarray, np.ndarray]:
    """What comes out and what should, in float64."""
    data = rows_of(case.kind, rows=case.rows, columns=case.columns)
    blocks = held(case.kind, data).part(case.first, case.last)
    want = weights(case.kind, data)[case.first : case.last]
    if case.ids is None:
        return wide(decoded(launch, blocks, case.dtype)), want
    got = look_up(launch, blocks, mx.array(case.ids), case.dtype, factor=case.factor)
    factor = float(np.float32(case.factor))
    return wide(got), factor * want[np.clip(case.ids, 0, len(want) - 1)]


def check(case: RowsCase, launch: Launcher) -> None:
    got, want = found(case, launch)
    assert got.shape == want.shape
    # Of a weight: of the two parts of it, too, whose sum is smaller.
    least = {mx.float32: 1e-7}.get(case.dtype, 1e-7) * np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=ROUNDING[case.dtype], atol=least)


@needs_clang
@pytest.mark.parametrize("name", CASES)
def test_rows_are_those_of_the_file(name: str) -> None:
    for dialect in Dialect:
        check(CASES[name], Emulator(dialect=dialect))


@needs_clang
@pytest.mark.parametrize("kind", BLOCKS_ON_GPU, ids=lambda kind: kind.name)
def test_nothing_beyond_its_memory_is_touched(kind: TensorType) -> None:
    case = RowsCase(kind=kind, rows=3, last=3, columns=1280)
    check(case, Emulator(mode=Mode.MEMORY))
    check(case, Emulator(order=Order.RANDOM))


@needs_clang
def test_no_races() -> None:
    check(RowsCase(rows=3, last=3), Emulator(mode=Mode.RACES))


@needs_clang
@pytest.mark.parametrize("kind", BLOCKS_ON_GPU, ids=lambda kind: kind.name)
def test_every_byte_is_loaded_once_and_in_order(kind: TensorType) -> None:
    """Lines of 128 bytes that loads of a simdgroup touch: as many as the bytes fill, and a fifth,
    but for scales, which lie elsewhere."""
    blocks = held(kind, rows_of(kind, rows=4, columns=4096))
    emulator = Emulator(mode=Mode.COUNTING)
    decoded(emulator, blocks, mx.float16)
    loaded, lines = (found["rows", "blocks"] for found in (emulator.loads, emulator.lines))
    assert blocks.nbytes <= loaded <= 1.03 * blocks.nbytes
    assert lines * 128 <= 1.6 * blocks.nbytes


@needs_clang
def test_ids_that_are_looked_up_load_their_rows_alone() -> None:
    data = rows_of(TensorType.Q6_K, rows=40, columns=1024)
    emulator = Emulator(mode=Mode.COUNTING)
    look_up(emulator, held(TensorType.Q6_K, data), mx.array([3, 39, 3]), mx.float16)
    assert emulator.loads["rows", "blocks"] == 3 * data.shape[1]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 5), (3,)])
@pytest.mark.parametrize("dtype", [mx.int32, mx.uint32, mx.int64], ids=str)
def test_ids_are_looked_up_by_one_launch(shape: tuple[int, ...], dtype: mx.Dtype) -> None:
    blocks = held(TensorType.Q4_K, rows_of(TensorType.Q4_K, rows=7, columns=256))
    recorder = Recorder()
    got = look_up(recorder, blocks, mx.zeros(shape, dtype), mx.float16, factor=2.0)
    assert got.shape == (*shape, 256)
    assert len(recorder.calls) == 1


def _calls() -> list[tuple[str, Call]]:
    recorder = Recorder()
    for kind in BLOCKS_ON_GPU:
        blocks = held(kind, rows_of(kind, rows=3, columns=1280))
        decoded(recorder, blocks, mx.float16)
        look_up(recorder, blocks, mx.arange(11), mx.bfloat16)
        look_up(recorder, blocks, mx.array([1]), mx.float32)
    return [(str(call.kernel.macros[-1]), call) for call in recorder.calls]


@needs_clang
def test_address_spaces() -> None:
    for name, call in _calls():
        assert lint(generate(call)) == [], name


@needs_nvrtc
def test_registers() -> None:
    for name, call in _calls()[::3]:
        assert registers.excess(call)[1] == [], name


def test_unencoded_numbers_are_read_by_mlx() -> None:
    recorder = Recorder()
    for kind in UNQUANTIZED:
        blocks = held(kind, rows_of(kind, rows=3, columns=64))
        decoded(recorder, blocks, mx.float16)
        look_up(recorder, blocks, mx.arange(2), mx.float16)
    assert recorder.calls == []
