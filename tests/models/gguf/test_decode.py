"""Tensors decoded in pieces are what gguf-py says of the whole, and only finite ones."""

import mlx.core as mx
import numpy as np
import pytest

from models.errors import GGUFError
from models.gguf import decode as module
from models.gguf.decode import decode, decode_into
from models.gguf.tensor import Tensor
from models.gguf.tensor_types import TensorType
from tests.models.gguf.blocks import (
    FLOATS,
    QUANTIZED,
    UNQUANTIZED,
    random_rows,
    tensor_of,
    weights_of,
)


@pytest.mark.parametrize("kind", TensorType, ids=lambda kind: kind.name)
def test_every_type_is_what_gguf_py_says(kind: TensorType, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = random_rows(kind, 1, rows=29)
    whole = decode(tensor_of(kind, rows))
    monkeypatch.setattr(module, "_PIECE_WEIGHTS", 5 * whole.shape[1])
    in_pieces = decode(tensor_of(kind, rows))
    assert whole.dtype == np.float32
    assert np.abs(whole).max() > 0
    np.testing.assert_array_equal(whole, weights_of(kind, rows))
    np.testing.assert_array_equal(in_pieces, whole)


def test_narrower_floats_are_rounded_once() -> None:
    rows = random_rows(TensorType.Q6_K, 2)
    out = mx.zeros((13, 768), mx.float16)
    mx.eval(out)
    decode_into(tensor_of(TensorType.Q6_K, rows), np.asarray(out))
    want = weights_of(TensorType.Q6_K, rows).astype(np.float16)
    np.testing.assert_array_equal(np.asarray(out), want)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_scales_that_are_not_finite_are_refused(kind: TensorType, value: float) -> None:
    for field in FLOATS[kind]:
        rows = random_rows(kind, 2).copy()
        at = rows.shape[1] - kind.block_bytes + field
        rows[-1, at : at + 2] = np.array([value], np.float16).view(np.uint8)
        with pytest.raises(GGUFError, match=r"blk\.7\.ffn_up\.weight.*a scale is NaN, infinite"):
            decode(tensor_of(kind, rows))


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", UNQUANTIZED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("place", [0, 17, 34])
def test_unquantized_weights_that_are_not_finite_are_refused(
    kind: TensorType, value: float, place: int
) -> None:
    values = np.random.default_rng(1).standard_normal((5, 7)).astype(np.float32)
    values.flat[place] = value
    dtype = {TensorType.F32: mx.float32, TensorType.F16: mx.float16}.get(kind, mx.bfloat16)
    rows = np.asarray(mx.array(values).astype(dtype).view(mx.uint8))
    with pytest.raises(GGUFError, match=r"blk\.7\.ffn_up\.weight.*a weight is NaN or infinite"):
        decode(tensor_of(kind, rows))


def test_what_a_narrower_float_cannot_hold_is_refused() -> None:
    for value, fits in ((65504.0, True), (-70000.0, False)):
        rows = np.array([[value, 1.0]], np.float32).view(np.uint8)
        out = np.zeros((1, 2), np.float16)
        if fits:
            decode_into(tensor_of(TensorType.F32, rows), out)
            assert out[0, 0] == value
        else:
            with pytest.raises(GGUFError, match="a weight is NaN or infinite"):
                decode_into(tensor_of(TensorType.F32, rows), out)


def test_a_vector_keeps_its_one_axis() -> None:
    rows = np.arange(11, dtype=np.float32).view(np.uint8)[None]
    vector = Tensor(name="norm", type=TensorType.F32, shape=(11,), data=rows)
    assert decode(vector).tolist() == list(range(11))
