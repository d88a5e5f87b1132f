"""Products of a few rows of x and blocks, and how far a kernel's are from the true ones."""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from kvcache.gpu.kernel import Launcher
from models.gguf.tensor_types import TensorType
from models.gpu.product import product
from tests.metal.matrices import held, rows_of, weights, wide

# What a number of a dtype is rounded by, of itself.
ROUNDING = {mx.float32: 2.0**-24, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}
# Of the sum of all terms' sizes: float32 sums of some thousand terms, 32 lanes at a time.
SUMMING = 2.0**-22


@dataclass(frozen=True, kw_only=True)
class ProductCase:
    """`inputs` rows of x times rows [first, last) of those that are held."""

    kind: TensorType = TensorType.Q4_K
    rows: int = 11
    columns: int = 1280
    inputs: int = 1
    first: int = 0
    last: int = 11
    dtype: mx.Dtype = mx.float32
    biased: bool = False


def columns_of(kind: TensorType, columns: int) -> int:
    """As many, or as few more as make whole blocks."""
    return -(-columns // kind.block_size) * kind.block_size


def drawn(case: ProductCase) -> tuple[mx.array, mx.array | None]:
    """x, of which some numbers are large, and what is added, in x's dtype as in a network."""
    random = np.random.default_rng(7)
    x = random.normal(size=(case.inputs, case.columns)).astype(np.float32)
    x[:, ::41] *= 30
    added = random.normal(size=case.last - case.first).astype(np.float32)
    return (
        mx.array(x).astype(case.dtype),
        mx.array(added).astype(case.dtype) if case.biased else None,
    )


def excess(case: ProductCase, launch: Launcher) -> npt.NDArray[np.float64]:
    """How far each number is from the true one, in units of what it may be."""
    data = rows_of(case.kind, rows=case.rows, columns=case.columns)
    x, added = drawn(case)
    blocks = held(case.kind, data).part(case.first, case.last)
    got = product(launch, blocks, x, added)
    assert (got.shape, got.dtype) == ((case.inputs, case.last - case.first), case.dtype)
    matrix = weights(case.kind, data)[case.first : case.last]
    bias = 0 if added is None else wide(added)
    want = wide(x) @ matrix.T + bias
    most = SUMMING * (np.abs(wide(x)) @ np.abs(matrix).T + np.abs(bias))
    most = most + ROUNDING[case.dtype] * np.abs(want)
    found: npt.NDArray[np.float64] = np.abs(wide(got) - want) / most
    return found
