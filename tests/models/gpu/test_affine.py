"""Q4_1 and Q5_1 in MLX's groups: the same weights to the bit, in the same bytes."""

import mlx.core as mx
import numpy as np
import pytest

from models.gguf.tensor import Tensor
from models.gguf.tensor_types import TensorType
from models.gpu.affine import BITS, AffineLinear, regrouped
from tests.models.gguf.blocks import random_rows, tensor_of, weights_of

ROWS = (17, 5, 2)
BLOCKS = 7


def tensors(kind: TensorType) -> list[Tensor]:
    """Of several rows over the same columns."""
    return [
        tensor_of(kind, random_rows(kind, seed, rows=rows, blocks=BLOCKS))
        for seed, rows in enumerate(ROWS)
    ]


def weights(kind: TensorType) -> np.ndarray:
    return np.concatenate([weights_of(kind, each.data) for each in tensors(kind)])


@pytest.fixture(params=BITS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> TensorType:
    found: TensorType = request.param
    return found


def test_mlx_reads_the_same_weights(kind: TensorType) -> None:
    made = AffineLinear(tensors(kind), None, mx.float32)
    ids = mx.array([[21, 0, 17], [16, 23, 22]])
    got = made.look_up(ids, 1)
    assert got.dtype == mx.float32
    np.testing.assert_array_equal(np.asarray(got), weights(kind)[np.asarray(ids)])
    assert made.rows == len(weights(kind)) == 24


def test_groups_take_the_bytes_of_the_blocks(kind: TensorType) -> None:
    made = AffineLinear(tensors(kind), None, mx.float32)
    held = sum(array.nbytes for array in (made.weight, made.scales, made.biases))
    assert held == sum(each.nbytes for each in tensors(kind))


def test_rows_that_are_looked_up_are_rounded_once(kind: TensorType) -> None:
    made = AffineLinear(tensors(kind), None, mx.float16)
    got = made.look_up(mx.arange(24), 3.0)
    want = (3 * weights(kind)).astype(np.float16)
    np.testing.assert_array_equal(np.asarray(got), want)


@pytest.mark.parametrize("length", [1, 40])
@pytest.mark.parametrize("biased", [False, True])
def test_products_are_those_of_the_weights(kind: TensorType, length: int, biased: bool) -> None:
    random = np.random.default_rng(5)
    x = random.normal(size=(2, length, 32 * BLOCKS)).astype(np.float32)
    bias = random.normal(size=24).astype(np.float32) if biased else np.zeros(24, np.float32)
    made = AffineLinear(tensors(kind), mx.array(bias) if biased else None, mx.float32)
    want = x.astype(np.float64) @ weights(kind).T.astype(np.float64) + bias
    np.testing.assert_allclose(np.asarray(made(mx.array(x))), want, rtol=0, atol=2e-5)


def test_every_bit_of_a_block_has_its_place(kind: TensorType) -> None:
    """A block of one bit alone gives a group of one bit alone, another one for each."""
    found = set()
    for bit in range(32, 8 * kind.block_bytes):
        block = np.zeros((1, kind.block_bytes), np.uint8)
        block[0, bit // 8] = 1 << bit % 8
        words, numbers = regrouped(kind, block)
        assert not numbers.any()
        found.add(int.from_bytes(words.tobytes(), "little"))
    assert found == {1 << bit for bit in range(32 * BITS[kind])}
