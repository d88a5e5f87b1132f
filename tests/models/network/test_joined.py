"""Matrices over one input: as one product they give what each gives, and are there once."""

import mlx.core as mx
import numpy as np
import pytest

from models.gguf.header import TensorInfo
from models.gguf.repack import Quantized, Unquantized, repack
from models.gguf.tensor_types import TensorType
from models.network.layers import Joined
from models.network.weights import Weights
from tests.gguf_factory import random_tensor

COLUMNS = 96
ROWS = {"a": 48, "b": 16, "c": 33}


def _weights(kinds: dict[str, TensorType], *, biases: str = "", columns: int = COLUMNS) -> Weights:
    rng, tensors = np.random.default_rng(5), dict[str, Quantized | Unquantized]()
    for name, kind in kinds.items():
        rows = random_tensor((ROWS[name], columns), kind, rng).reshape(ROWS[name], -1)
        info = TensorInfo(
            name=name, shape=(ROWS[name], columns), type=kind, offset=0, nbytes=rows.nbytes
        )
        tensors[f"{name}.weight"] = repack(info, rows)
    for name in biases:
        bias = rng.normal(size=ROWS[name]).astype(np.float32)
        tensors[f"{name}.bias"] = Unquantized(array=mx.array(bias))
    return Weights(tensors, mx.float32)


def _joined(kinds: dict[str, TensorType], *, biases: str = "") -> tuple[Joined, Joined]:
    """With joining and without."""
    one, other = (
        _weights(kinds, biases=biases).joined(list(kinds), join=join) for join in (True, False)
    )
    return one, other


@pytest.mark.parametrize("biases", ["", "abc"])
@pytest.mark.parametrize("kind", [TensorType.Q4_1, TensorType.Q5_1, TensorType.Q8_0])
@pytest.mark.parametrize("length", [1, 40])
def test_packed_rows_are_exactly_the_same(kind: TensorType, length: int, biases: str) -> None:
    joined, each = _joined(dict.fromkeys(ROWS, kind), biases=biases)
    x = mx.random.normal((1, length, COLUMNS), key=mx.random.key(1))
    (together,), apart = joined(x), each(x)
    assert mx.array_equal(together, mx.concatenate(apart, axis=-1))
    assert all(
        mx.array_equal(mine(x), theirs)
        for mine, theirs in zip(joined.matrices(), apart, strict=True)
    )


@pytest.mark.parametrize("kind", [TensorType.F32, TensorType.F16])
def test_unpacked_rows_are_the_same(kind: TensorType) -> None:
    """But for the order in which a BLAS adds up."""
    joined, each = _joined(dict.fromkeys(ROWS, kind))
    x = mx.random.normal((1, 5, COLUMNS), key=mx.random.key(1))
    (together,), apart = joined(x), each(x)
    assert mx.allclose(together, mx.concatenate(apart, axis=-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kinds", "biases", "products"),
    [
        ((TensorType.Q4_1, TensorType.Q4_1, TensorType.Q8_0), "", [2, 1]),
        ((TensorType.Q8_0, TensorType.Q4_1, TensorType.Q4_1), "", [1, 2]),
        ((TensorType.Q4_1, TensorType.Q8_0, TensorType.Q4_1), "", [1, 1, 1]),
        ((TensorType.Q4_1, TensorType.Q4_1, TensorType.Q4_1), "ac", [1, 1, 1]),
        ((TensorType.F16, TensorType.F16, TensorType.F32), "", [2, 1]),
    ],
)
def test_only_neighbours_stored_alike_are_joined(
    kinds: tuple[TensorType, ...], biases: str, products: list[int]
) -> None:
    named = dict(zip(ROWS, kinds, strict=True))
    joined, each = _joined(named, biases=biases)
    rows = iter(ROWS.values())
    wanted = [sum(next(rows) for _ in range(count)) for count in products]
    assert [len(product.weight) for product in joined.products] == wanted
    assert [len(product.weight) for product in each.products] == [*ROWS.values()]
    x = mx.random.normal((2, 3, COLUMNS), key=mx.random.key(2))
    got, want = (mx.concatenate(one(x), axis=-1) for one in (joined, each))
    assert mx.allclose(got, want, rtol=0, atol=1e-5)


def test_only_one_product_is_ever_there_twice() -> None:
    size, columns = 9, 1 << 15
    one = _weights(dict.fromkeys(ROWS, TensorType.Q8_0), columns=columns)
    tensors = {
        f"{i}{name}": Quantized(
            weight=mx.array(tensor.weight + 0),
            scales=mx.array(tensor.scales + 0),
            biases=mx.array(tensor.biases + 0),
            bits=tensor.bits,
        )
        for i in range(size)
        for name, tensor in one._tensors.items()
        if isinstance(tensor, Quantized)
    }
    mx.eval([[each.weight, each.scales, each.biases] for each in tensors.values()])
    weights = Weights(tensors, mx.float32)
    del tensors, one
    mx.clear_cache()
    before, product = mx.get_active_memory(), weights.nbytes // size
    mx.reset_peak_memory()
    joined = [weights.joined([f"{i}{name}" for name in ROWS], join=True) for i in range(size)]
    assert mx.get_peak_memory() - before < 1.2 * product
    assert mx.get_active_memory() + mx.get_cache_memory() - before < 0.2 * product
    assert [len(each.products) for each in joined] == [1] * size
