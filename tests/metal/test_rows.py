"""Rows of blocks as numbers, by the kernel's text run here, against gguf-py."""

import mlx.core as mx
import numpy as np
import pytest

from kvcache.gpu.kernel import Dialect, Launcher
from models.gguf.tensor_types import TensorType
from models.gpu.rows import decoded, look_up
from tests.metal import registers
from tests.metal.build import Mode, find_compiler
from tests.metal.emulator import Emulator, Order
from tests.metal.generated import generate
from tests.metal.lint import lint
from tests.metal.lookups import LookupCase, excess
from tests.metal.matrices import BLOCKS_ON_GPU, ON_GPU, WITHOUT_GRID, held, rows_of, weights, wide
from tests.metal.recording import Recorder
from tests.models.gguf.blocks import UNQUANTIZED

needs_clang = pytest.mark.skipif(
    find_compiler() is None, reason="needs clang++ 18 or newer on x86-64 Linux"
)
CASES = (
    {kind.name: LookupCase(kind=kind) for kind in ON_GPU}
    | {
        f"{kind.name}, by id": LookupCase(kind=kind, first=2, last=5, ids=(2, 0, 2, 1), factor=-3.5)
        for kind in ON_GPU
    }
    | {
        "a block": LookupCase(rows=1, last=1, columns=256),
        "columns of SmolLM2": LookupCase(kind=TensorType.Q8_0, columns=576),
        "a step exactly": LookupCase(columns=1024, rows=9, last=9),
        "one id": LookupCase(ids=(6,)),
        "ids of no row": LookupCase(
            ids=(-1, 7, 1 << 30, -(1 << 31), 3, 0, 6, 7, 8), first=1, last=5
        ),
        "float16": LookupCase(dtype=mx.float16),
        "bfloat16": LookupCase(dtype=mx.bfloat16, kind=TensorType.Q6_K),
        "numbers and a factor": LookupCase(
            kind=TensorType.F32, dtype=mx.float16, columns=37, ids=(4, 1, 1, 3, 0), factor=0.3
        ),
        "float16, by id": LookupCase(dtype=mx.float16, ids=(4, 1), factor=27.7),
    }
)


def check(case: LookupCase, launch: Launcher) -> None:
    assert excess(case, launch).max() <= 1


@needs_clang
@pytest.mark.parametrize("name", CASES)
def test_rows_are_those_of_the_file(name: str) -> None:
    """Each type by both dialects: by ids as CUDA."""
    by_id = CASES[name].ids is not None
    check(CASES[name], Emulator(dialect=Dialect.CUDA if by_id else Dialect.METAL))


@needs_clang
def test_every_scale_of_mxfp4() -> None:
    """Powers of two, of which the smallest are no normal numbers."""
    data = rows_of(TensorType.MXFP4, rows=253, columns=32)
    data[:, 0] = np.arange(253)
    got = decoded(Emulator(), held(TensorType.MXFP4, data), mx.float32)
    np.testing.assert_array_equal(wide(got), weights(TensorType.MXFP4, data))


@needs_clang
@pytest.mark.parametrize("kind", BLOCKS_ON_GPU, ids=lambda kind: kind.name)
def test_nothing_beyond_its_memory_is_touched(kind: TensorType) -> None:
    case = LookupCase(kind=kind, rows=3, last=3, columns=1280)
    check(case, Emulator(mode=Mode.MEMORY))
    check(case, Emulator(order=Order.RANDOM))


@needs_clang
def test_no_races() -> None:
    check(LookupCase(rows=3, last=3), Emulator(mode=Mode.RACES))


@needs_clang
@pytest.mark.parametrize("kind", WITHOUT_GRID[:-3], ids=lambda kind: kind.name)
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


@needs_clang
@pytest.mark.parametrize("kind", BLOCKS_ON_GPU, ids=lambda kind: kind.name)
def test_address_spaces(kind: TensorType) -> None:
    calls = [call for call in registers.matrix_calls(kind) if call.kernel.stem == "rows"]
    for call in calls[kind % 2 :: 2]:
        assert lint(generate(call)) == []


def test_unencoded_numbers_are_read_by_mlx() -> None:
    recorder = Recorder()
    for kind in UNQUANTIZED:
        blocks = held(kind, rows_of(kind, rows=3, columns=64))
        decoded(recorder, blocks, mx.float16)
        look_up(recorder, blocks, mx.arange(2), mx.float16)
    assert recorder.calls == []
