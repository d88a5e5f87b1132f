"""Matrices as a GPU holds them, tried and computed by the emulator, against gguf-py."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from kvcache.gpu.kernel import Call, Launcher
from models.errors import GGUFError
from models.gguf.file import GGUFFile
from models.gguf.tensor import Tensor
from models.gguf.tensor_types import TensorType
from models.gpu.affine import BITS, AffineLinear
from models.gpu.matrix import BlockLinear
from models.network.config import NetworkConfig
from models.network.gpu_matrices import GpuMatrices
from models.network.layers import Linear, Projection
from models.network.llama import Model
from models.network.shapes import tensors_to_read
from models.network.weights import Weights
from tests.gguf_factory import LlamaShape, q4_k_m, sentencepiece_tokenizer, write_llama
from tests.metal.build import find_compiler
from tests.metal.emulator import Emulator
from tests.metal.matrices import ON_GPU, WITHOUT_GRID, rows_of, weights, wide
from tests.metal.recording import zeros
from tests.models.gguf.blocks import of_floats, tensor_of

needs_clang = pytest.mark.skipif(
    find_compiler() is None, reason="needs clang++ 18 or newer on x86-64 Linux"
)
ROWS, COLUMNS = (17, 6, 2), 512


def tensors(kind: TensorType, *, columns: int = COLUMNS) -> list[Tensor]:
    """Three over the same columns, as q, k and v are."""
    return [
        tensor_of(kind, rows_of(kind, rows=rows, columns=columns, seed=seed))
        for seed, rows in enumerate(ROWS)
    ]


def right(several: Sequence[Tensor]) -> np.ndarray:
    return np.concatenate([weights(each.type, each.data) for each in several])


def check(matrix: Projection, several: Sequence[Tensor], bias: mx.array | None) -> None:
    """Products of one and of many rows, and rows looked up."""
    w = right(several)
    assert matrix.rows == len(w)
    for shape in ((1, 1), (2, 4), (1, 300)):
        drawn = np.random.default_rng(3).normal(size=(*shape, COLUMNS)).astype(np.float32)
        x = mx.array(drawn).astype(mx.float16)
        y = matrix(x)
        want = wide(x) @ w.T + (0 if bias is None else wide(bias))
        assert (y.shape, y.dtype) == (want.shape, mx.float16)
        # MLX's affine products add up in float16 on a CPU.
        most = 2e-2 if isinstance(matrix, AffineLinear) else 2e-3
        np.testing.assert_allclose(wide(y), want, rtol=0, atol=most * np.abs(want).max())
    ids = mx.array([[24, 0, 500], [17, -3, 5]])
    rows = matrix.look_up(ids, 3.0)
    want = 3 * w[np.clip(np.array(ids), 0, 24)]
    assert (rows.shape, rows.dtype) == (want.shape, mx.float16)
    np.testing.assert_allclose(wide(rows), want, rtol=0, atol=2**-10 * np.abs(want).max())


@needs_clang
@pytest.mark.parametrize(
    ("kind", "biased"),
    [*((kind, number % 2 == 0) for number, kind in enumerate(ON_GPU)), (TensorType.Q4_0, False)],
)
def test_matrices_are_those_of_the_file(kind: TensorType, biased: bool) -> None:
    hold = GpuMatrices(launch=Emulator())
    bias = mx.random.normal((sum(ROWS),)).astype(mx.float16) if biased else None
    several = tensors(kind)
    matrix = hold(several, bias, mx.float16)
    assert hold.notes == []
    assert isinstance(matrix, AffineLinear if kind in BITS else BlockLinear)
    held = sum(array.nbytes for array in matrix.parameters().values()) - 2 * sum(ROWS) * biased
    # Planes begin at multiples of 16 bytes; some types have a grid, of 4 KB at most.
    most = 4 * 16 + 4096 * (kind not in WITHOUT_GRID)
    assert 0 <= held - sum(each.nbytes for each in several) < most
    check(matrix, several, bias)


@needs_clang
@pytest.mark.parametrize("kind", [TensorType.Q4_K, TensorType.Q4_0, TensorType.Q6_K])
def test_a_part_of_the_columns_is_read_alone(kind: TensorType) -> None:
    whole = tensor_of(kind, rows_of(kind, rows=25, columns=4 * COLUMNS, seed=5))
    each = whole.data.shape[1] // 4
    apart = whole.data[:, each : 2 * each]
    part = replace(whole, shape=(25, COLUMNS), data=apart)
    matrix = GpuMatrices(launch=Emulator())([part], None, mx.float16)
    assert isinstance(matrix, AffineLinear | BlockLinear)
    assert sum(array.nbytes for array in matrix.parameters().values()) < 1.5 * apart.nbytes + 5000
    check(matrix, [replace(part, data=apart.copy())], None)


@dataclass(frozen=True, kw_only=True)
class Faulty:
    """An emulator one of whose kernels does not work."""

    stem: str
    error: float = 0.01
    emulator: Emulator = field(default_factory=Emulator)

    def __call__(self, call: Call) -> list[mx.array]:
        outputs = self.emulator(call)
        if call.kernel.stem != self.stem:
            return outputs
        return [each + self.error * mx.abs(each).max() for each in outputs]


def refused(_call: Call) -> list[mx.array]:
    raise RuntimeError("[metal::Device] Unable to build metal library\nmore")


@needs_clang
@pytest.mark.parametrize(
    ("launch", "said"),
    [
        (Faulty(stem="product"), "differ from the file's weights by 0.01"),
        (Faulty(stem="rows"), "differ from the file's weights by 0.01"),
        (Faulty(stem="product", error=float("nan")), "differ from the file's weights by inf"),
        (zeros, "differ from the file's weights by 1 of the largest number"),
        (refused, "do not run here: [metal::Device] Unable to build metal library; run `make"),
    ],
    ids=["product", "rows", "nan", "nothing", "refused"],
)
def test_kernels_that_fail_are_not_used(launch: Launcher, said: str) -> None:
    hold = GpuMatrices(launch=launch)
    several = tensors(TensorType.Q6_K)
    for _ in range(2):
        matrix = hold(several, None, mx.float16)
        assert isinstance(matrix, Linear)
        check(matrix, several, None)
    (note,) = hold.notes
    assert note.startswith(
        "matrices are decoded to 16-bit floats, which takes more memory, of Q6_K"
    )
    assert said in note


@needs_clang
@pytest.mark.parametrize("size", [0, 1e-30, 1e-6])
def test_tiny_weights_are_no_fault_of_the_kernels(size: float) -> None:
    """Tokens that nobody trained, of which 16-bit activations have few bits."""
    numbers = np.random.default_rng(1).normal(size=(13, 64)).astype(np.float32) * np.float32(size)
    hold = GpuMatrices(launch=Emulator())
    hold([of_floats("token_embd.weight", numbers)], None, mx.float16)
    assert hold.notes == []


@needs_clang
def test_each_kind_of_matrix_is_tried_once() -> None:
    """Every kernel that an answer needs: more rows of x, and other matrices, compile no other."""
    stems: list[str] = []
    compiled: set[tuple[object, ...]] = set()

    def launch(call: Call) -> list[mx.array]:
        stems.append(call.kernel.stem)
        small = call.kernel.stem == "rows" and call.inputs[0].size < 8
        compiled.add((call.kernel.name, *map(str, call.constants.items()), small))
        return Emulator()(call)

    hold = GpuMatrices(launch=launch)
    matrix = hold(tensors(TensorType.Q4_K), None, mx.float16)
    tried, before = len(stems), set(compiled)
    hold(tensors(TensorType.Q4_K)[1:], None, mx.float16)
    assert len(stems) == tried
    hold(tensors(TensorType.Q4_K, columns=768), None, mx.float16)
    assert len(stems) == 2 * tried
    for count in (*range(1, 10), 300):
        matrix(mx.zeros((1, count, COLUMNS), mx.float16))
    for count in (1, 5, 11):
        matrix.look_up(mx.zeros((1, count), mx.int32), 2.0)
    assert compiled == before


@needs_clang
@pytest.mark.parametrize("kind", [TensorType.Q8_0, TensorType.Q5_1], ids=lambda kind: kind.name)
def test_what_is_not_finite_is_refused_by_name(kind: TensorType) -> None:
    """Wherever it lies: all is looked at while it is read."""
    several = tensors(kind)
    several[1].data[5, :2] = np.array([np.nan], np.float16).view(np.uint8)
    with pytest.raises(GGUFError, match=r"tensor 'blk.7.ffn_up.weight' .*: a scale is NaN"):
        GpuMatrices(launch=Emulator())(several, None, mx.float16)


@needs_clang
def test_a_network_over_blocks_says_what_one_of_decoded_weights_says(tmp_path: Path) -> None:
    """A token, some, and a prompt, of a file with blocks of two types, joined and tied."""
    shape = LlamaShape(
        layers=2, width=256, ffn=512, heads=4, kv_heads=2, vocab=611, context=512, tied=True
    )
    path, tokenizer = tmp_path / "tiny.gguf", sentencepiece_tokenizer(shape.vocab)
    write_llama(path, config=shape, types=q4_k_m(shape), tokenizer_metadata=tokenizer, seed=5)
    with GGUFFile(path) as file:
        config = NetworkConfig.from_metadata(file.metadata)
        tensors = {name: file.tensor(info) for name, info in tensors_to_read(file, config).items()}
        hold = GpuMatrices(launch=Emulator())
        ours = Model(config, Weights(tensors, mx.float16, hold))
        theirs = Model(config, Weights(tensors, mx.float32))
    assert hold.notes == []
    kinds = [matrix._blocks.type for matrix in ours.modules() if isinstance(matrix, BlockLinear)]
    assert {*kinds} == {TensorType.Q4_K, TensorType.Q6_K}
    for length in (1, 11, 90):
        ids = (mx.arange(length) * 37 % shape.vocab)[None]
        got, want = wide(ours(ids)), wide(theirs(ids))
        np.testing.assert_allclose(got, want, rtol=0, atol=0.01 * np.abs(want).max())
