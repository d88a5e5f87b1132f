"""Weights that are not finite: told by bytes alone, in numpy and by the kernels, as decoding tells.

Of every type, in every number that can be wrong of the first, a middle and the last block.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from models.gguf.checks import are_finite, not_finite
from models.gguf.tensor_types import TensorType
from models.native.kernels import kernels
from tests.models.gguf.blocks import FLOATS, UNQUANTIZED, random_rows, tensor_of, weights_of

Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Check = Callable[[TensorType, Bytes], bool]
# More than a task of the kernels and a piece of numpy's each.
LARGE = 1 << 21
FORMS: dict[str, Check] = {
    "numpy": are_finite,
    "kernels": lambda kind, data: kernels().are_finite(data, kind),
}
# Bits that are not finite, and next to them the largest that are.
HALVES = (0x7C00, 0xFC00, 0x7C01, 0xFFFF), (0x7BFF, 0xFBFF, 0x0000, 0x8000, 0x03FF)
OF_FLOATS: dict[TensorType, tuple[tuple[int, ...], tuple[int, ...]]] = {
    TensorType.F32: (
        (0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF),
        (0x7F7FFFFF, 0xFF7FFFFF, 0, 0x80000000, 0x007FFFFF),
    ),
    TensorType.F16: HALVES,
    TensorType.BF16: ((0x7F80, 0xFF80, 0x7F81, 0xFFFF), (0x7F7F, 0xFF7F, 0, 0x8000, 0x007F)),
}


def _changed(kind: TensorType, data: Bytes, at: int) -> Iterator[tuple[Bytes, bool]]:
    """The same with a number of block `at` changed, and whether its weights are finite."""
    width = kind.block_bytes if kind in UNQUANTIZED else 2
    bad, good = OF_FLOATS.get(kind, HALVES)
    for field in FLOATS.get(kind, (0,)):
        for values, finite in ((bad, False), (good, True)):
            for value in values:
                changed = data.copy()
                block = changed.reshape(-1, kind.block_bytes)[at]
                block[field : field + width] = np.frombuffer(value.to_bytes(width, "little"), "u1")
                yield changed, finite


def _places(kind: TensorType, data: Bytes) -> tuple[int, int, int]:
    count = data.nbytes // kind.block_bytes
    return 0, count // 2, count - 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", TensorType, ids=lambda kind: kind.name)
def test_a_block_is_found_wherever_it_is(kind: TensorType, form: str) -> None:
    data = random_rows(kind, 3)
    assert FORMS[form](kind, data)
    for at in _places(kind, data):
        for changed, finite in _changed(kind, data, at):
            assert FORMS[form](kind, changed) == finite, (at, finite)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [TensorType.Q4_K, TensorType.Q6_K, TensorType.BF16])
def test_a_block_of_a_large_matrix_is_found(kind: TensorType, form: str) -> None:
    data = np.tile(random_rows(kind, 5, rows=1), (LARGE // kind.block_bytes, 1))
    assert FORMS[form](kind, data)
    for at in _places(kind, data):
        changed, finite = next(_changed(kind, data, at))
        assert not finite
        assert not FORMS[form](kind, changed)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", TensorType, ids=lambda kind: kind.name)
def test_any_bits_at_all_are_judged_as_gguf_py_decodes_them(kind: TensorType, form: str) -> None:
    rng = np.random.default_rng(kind)
    verdicts = set()
    for _ in range(200):
        data = rng.integers(0, 256, (1, 3 * kind.block_bytes), np.uint8)
        with np.errstate(all="ignore"):
            finite = bool(np.isfinite(weights_of(kind, data)).all())
        assert FORMS[form](kind, data) == finite
        verdicts.add(finite)
    assert True in verdicts


@pytest.mark.parametrize("form", FORMS)
def test_powers_of_two_are_judged_with_their_codes(form: str) -> None:
    for exponent in range(250, 256):
        for code in range(16):
            data = np.full((1, 17), code << 4, np.uint8)
            data[0, 0] = exponent
            with np.errstate(over="ignore"):
                finite = bool(np.isfinite(weights_of(TensorType.MXFP4, data)).all())
            assert FORMS[form](TensorType.MXFP4, data) == finite


def test_what_is_said_names_the_tensor_and_who_may_have_done_it() -> None:
    scale, weight = (
        str(not_finite(tensor_of(kind, random_rows(kind, 1))))
        for kind in (TensorType.Q4_K, TensorType.BF16)
    )
    assert scale.startswith("tensor 'blk.7.ffn_up.weight' (Q4_K): a scale is NaN")
    assert scale.endswith("unsound quantizer")
    assert weight.startswith("tensor 'blk.7.ffn_up.weight' (BF16): a weight is NaN or infinite;")
    assert weight.endswith("unsound converter")
