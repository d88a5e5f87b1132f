"""Many rows of x times blocks: the kernels' texts run here, MLX's matmul, and bytes by formula."""

from math import prod

import mlx.core as mx
import numpy as np
import pytest

from kvcache.gpu.kernel import Call, Launcher
from models.gguf.tensor_types import TensorType
from models.gpu import traffic
from models.gpu.blocks import Blocks
from models.gpu.prompt import Pace, product_of_many
from models.gpu.traffic import TILE_BYTES, ProductTraffic
from tests.metal.build import Mode, find_compiler
from tests.metal.emulator import Emulator
from tests.metal.matrices import BLOCKS_ON_GPU, ON_GPU, WITHOUT_GRID, held, rows_of, weights, wide
from tests.metal.recording import Recorder

needs_clang = pytest.mark.skipif(
    find_compiler() is None, reason="needs clang++ 18 or newer on x86-64 Linux"
)
LLAMA_2_7B = {"q, k, v": (12288, 4096), "gate, up": (22016, 4096), "down": (4096, 11008)}


def check(
    kind: TensorType,
    launch: Launcher,
    *,
    tokens: int,
    rows: int = 70,
    dtype: mx.Dtype = mx.float32,
    biased: bool = False,
) -> None:
    """Products against float64."""
    columns = 512
    data = rows_of(kind, rows=rows, columns=columns)
    random = np.random.default_rng(tokens)
    x = mx.array(random.normal(size=(tokens, columns)).astype(np.float32)).astype(dtype)
    added = mx.array(random.normal(size=rows).astype(np.float32)) if biased else None
    got = product_of_many(launch, held(kind, data), x, added)
    want = wide(x) @ weights(kind, data).T + (0 if added is None else wide(added))
    assert got.dtype == dtype
    assert got.shape == want.shape
    least = {mx.float32: 2e-6, mx.float16: 2e-3, mx.bfloat16: 1e-2}[dtype]
    np.testing.assert_allclose(wide(got), want, rtol=0, atol=least * np.abs(want).max())


@needs_clang
@pytest.mark.parametrize("kind", ON_GPU, ids=lambda kind: kind.name)
def test_both_ways_give_the_product(kind: TensorType) -> None:
    recorder, emulator = Recorder(), Emulator()

    def launch(call: Call) -> list[mx.array]:
        recorder.calls.append(call)
        return emulator(call)

    for tokens in (9, 300):
        check(kind, launch, tokens=tokens, biased=True)
    stems = [call.kernel.stem for call in recorder.calls]
    expanded = ["rows"] if kind in BLOCKS_ON_GPU else []
    assert stems == ["product"] * 2 + expanded


@needs_clang
@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [9, 300])
def test_dtypes(dtype: mx.Dtype, tokens: int) -> None:
    check(TensorType.Q4_K, Emulator(), tokens=tokens, dtype=dtype)


@needs_clang
@pytest.mark.parametrize("biased", [False, True])
def test_tiles_are_put_together(monkeypatch: pytest.MonkeyPatch, biased: bool) -> None:
    """Of 64 rows, the last one of six."""
    monkeypatch.setattr(traffic, "TILE_BYTES", 1)
    for kind in (TensorType.Q6_K, TensorType.BF16):
        check(kind, Emulator(), tokens=1000, biased=biased)


# -- bytes --


def moved(blocks: Blocks, tokens: int, size: int = 2) -> ProductTraffic:
    return ProductTraffic(
        rows=blocks.rows,
        columns=blocks.columns,
        blocks=blocks.nbytes,
        tokens=tokens,
        size=size,
    )


def of_shape(kind: TensorType, rows: int, columns: int, tokens: int) -> ProductTraffic:
    blocks = rows * columns // kind.block_size * kind.block_bytes
    return ProductTraffic(rows=rows, columns=columns, blocks=blocks, tokens=tokens)


def test_traffic_by_hand() -> None:
    """Q4_K, of 144 bytes for 256 weights; ten rows of x are two passes."""
    found = of_shape(TensorType.Q4_K, 3, 512, 10)
    x, y, blocks = 10 * 512 * 2, 10 * 3 * 2, 3 * 2 * 144
    assert found.straight == 2 * blocks + x + y
    assert found.expanded == blocks + 2 * 3 * 512 * 2 + x + y
    assert not found.expands
    assert of_shape(TensorType.Q4_K, 3, 512, 1000).expands


@needs_clang
@pytest.mark.parametrize("kind", WITHOUT_GRID[:-3], ids=lambda kind: kind.name)
@pytest.mark.parametrize("tokens", [9, 24, 512])
def test_kernels_move_what_the_formula_says(kind: TensorType, tokens: int) -> None:
    """Blocks, decoded weights and what comes out; MLX's matmul is taken to read weights once."""
    blocks = held(kind, rows_of(kind, rows=24, columns=1024))
    emulator, written = Emulator(mode=Mode.COUNTING), 0

    def launch(call: Call) -> list[mx.array]:
        nonlocal written
        written += sum(
            prod(shape) * each.size for shape, each in zip(call.shapes, call.dtypes, strict=True)
        )
        return emulator(call)

    product_of_many(launch, blocks, mx.zeros((tokens, 1024), mx.float16))
    formula, loaded = moved(blocks, tokens), emulator.loads
    read = sum(count for (_, name), count in loaded.items() if name == "blocks")
    weight_bytes, out = 2 * 24 * 1024, 2 * 24 * tokens
    around = 2 * 1024 * tokens + out
    if formula.expands:
        assert written == weight_bytes
        whole = read + 2 * written + around
    else:
        assert written == out
        whole = read + around
    said = min(formula.straight, formula.expanded)
    assert said <= whole <= 1.03 * said


@pytest.mark.parametrize("kind", BLOCKS_ON_GPU, ids=lambda kind: kind.name)
@pytest.mark.parametrize("name", LLAMA_2_7B)
def test_from_how_many_rows_on_decoding_pays(kind: TensorType, name: str) -> None:
    """Whatever the matrix: more than 24 rows of x, and never a prompt's 512."""
    rows, columns = LLAMA_2_7B[name]
    first = next(n for n in range(9, 600) if of_shape(kind, rows, columns, n).expands)
    assert 24 < first <= 128
    assert all(of_shape(kind, rows, columns, n).expands for n in range(first, 600))


# -- memory --


@pytest.mark.parametrize("name", LLAMA_2_7B)
def test_a_tile_keeps_to_its_bytes(name: str) -> None:
    rows, columns = LLAMA_2_7B[name]
    found = of_shape(TensorType.Q4_K, rows, columns, 512)
    assert found.tile_rows % 64 == 0
    assert TILE_BYTES // 2 < found.tile_rows * columns * 2 <= TILE_BYTES


@pytest.mark.parametrize("rows", [1024, 2100], ids=["a tile", "tiles"])
@pytest.mark.parametrize("kind", [TensorType.Q4_K, TensorType.BF16], ids=lambda kind: kind.name)
def test_few_tiles_are_there_at_a_time(
    kind: TensorType, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many products follow each other: MLX's memory counts."""
    tile, columns, tokens = 2**20, 512, 130
    monkeypatch.setattr(traffic, "TILE_BYTES", tile)
    matrix = Blocks.empty(kind, rows=rows, columns=columns)
    x = mx.zeros((tokens, columns), mx.float16)
    mx.eval(x)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()

    def launch(call: Call) -> list[mx.array]:
        """What is allocated once the inputs are there."""
        first = call.inputs[0].flatten()[:1].astype(mx.float16)
        return [mx.contiguous(mx.broadcast_to(first, shape)) for shape in call.shapes]

    pace = Pace(most=tile)
    for _ in range(12):
        y = product_of_many(launch, matrix, x, pace=pace)
        x = y[:, :columns]
    mx.eval(x)
    taken = mx.get_peak_memory() - before
    # Of each product that is under way: what comes out of it, by itself and in parts.
    assert tile < taken < 2 * tile + 6 * y.nbytes
