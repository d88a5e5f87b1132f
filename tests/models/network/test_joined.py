"""Matrices over the same input, as one product or as several: the rows are the same."""

import mlx.core as mx
import numpy as np
import pytest

from models.gguf.tensor import Tensor
from models.gguf.tensor_types import TensorType
from models.network.layers import Linear, Projection, hold_decoded
from models.network.weights import Weights
from tests.models.gguf.blocks import of_floats, random_rows, tensor_of

ROWS = {"a": 67, "b": 29, "c": 29}


def _weights(kinds: dict[str, TensorType], *, joins: bool, biases: str = "") -> Weights:
    rng, tensors = np.random.default_rng(5), dict[str, Tensor]()
    for seed, (name, kind) in enumerate(kinds.items()):
        blocks = 24 if kind.block_size < 256 else 3
        rows = random_rows(kind, seed, rows=ROWS[name], blocks=blocks)
        tensors[f"{name}.weight"] = tensor_of(kind, rows, f"{name}.weight")
        if name in biases:
            bias = rng.normal(size=ROWS[name]).astype(np.float32)
            tensors[f"{name}.bias"] = of_floats(f"{name}.bias", bias)
    return Weights(tensors, mx.float32, joins=joins)


def _both(
    kinds: dict[str, TensorType], *, biases: str = ""
) -> tuple[list[Projection], list[Projection]]:
    """With joining and without."""
    one, other = (
        _weights(kinds, joins=joins, biases=biases).joined(list(kinds)) for joins in (True, False)
    )
    return one, other


@pytest.mark.parametrize(
    ("kinds", "biases", "rows"),
    [
        ((TensorType.Q4_1, TensorType.Q4_1, TensorType.Q8_0), "", [96, 29]),
        ((TensorType.Q8_0, TensorType.Q4_K, TensorType.Q4_K), "", [67, 58]),
        ((TensorType.Q4_1, TensorType.Q8_0, TensorType.Q4_1), "", [67, 29, 29]),
        ((TensorType.Q4_1, TensorType.Q4_1, TensorType.Q4_1), "", [125]),
        ((TensorType.Q4_1, TensorType.Q4_1, TensorType.Q4_1), "abc", [125]),
        ((TensorType.Q4_1, TensorType.Q4_1, TensorType.Q4_1), "ac", [67, 29, 29]),
        ((TensorType.F16, TensorType.F16, TensorType.F32), "", [96, 29]),
    ],
)
def test_neighbours_of_one_type_are_joined(
    kinds: tuple[TensorType, ...], biases: str, rows: list[int]
) -> None:
    joined, each = _both(dict(zip(ROWS, kinds, strict=True)), biases=biases)
    assert [product.rows for product in joined] == rows
    assert [product.rows for product in each] == [*ROWS.values()]
    x = mx.random.normal((2, 3, 768), key=mx.random.key(2))
    got, want = (mx.concatenate([one(x) for one in both], axis=-1) for both in (joined, each))
    # But for the order in which a BLAS adds up.
    assert mx.allclose(got, want, rtol=1e-4, atol=1e-4)


def test_a_matrix_is_held_once() -> None:
    kinds = dict.fromkeys(ROWS, TensorType.F32)
    weights = _weights(kinds, joins=True)
    held = 4 * 768 * sum(ROWS.values())
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    joined = weights.joined(list(kinds))
    assert mx.get_peak_memory() - before < 1.1 * held
    assert len(joined) == 1


def test_rows_are_looked_up_and_multiplied() -> None:
    rows = random_rows(TensorType.Q6_K, 1)
    matrix = hold_decoded([tensor_of(TensorType.Q6_K, rows)], None, mx.float16)
    assert isinstance(matrix, Linear)
    ids = mx.array([[5, 0], [12, 5]])
    found = matrix.look_up(ids, 3.0)
    assert (found.dtype, found.shape) == (mx.float16, (2, 2, 768))
    assert mx.array_equal(found, matrix.weight[ids] * 3)
    assert mx.array_equal(matrix.look_up(ids, 1), matrix.weight[ids])
