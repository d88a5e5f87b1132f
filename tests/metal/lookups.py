"""Rows of blocks as numbers, and how far a kernel's are from the true ones."""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from kvcache.gpu.kernel import Launcher
from models.gguf.tensor_types import TensorType
from models.gpu.rows import decoded, look_up
from tests.metal.matrices import held, rows_of, weights, wide

# What a number of a dtype is rounded by, of itself.
ROUNDING = {mx.float32: 2.0**-22, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}
# Of the largest weight: its two parts are float32, and their sum may be much smaller.
SUMMING = 1e-7


@dataclass(frozen=True, kw_only=True)
class LookupCase:
    """ids: None for all of the rows [first, last), in order, as before a matmul."""

    kind: TensorType = TensorType.Q4_K
    rows: int = 7
    columns: int = 1280
    first: int = 0
    last: int = 7
    ids: tuple[int, ...] | None = None
    factor: float = 1.0
    dtype: mx.Dtype = mx.float32


def excess(case: LookupCase, launch: Launcher) -> npt.NDArray[np.float64]:
    """How far each number is from the true one, in units of what it may be."""
    data = rows_of(case.kind, rows=case.rows, columns=case.columns)
    blocks = held(case.kind, data).part(case.first, case.last)
    want = weights(case.kind, data)[case.first : case.last]
    if case.ids is None:
        got = decoded(launch, blocks, case.dtype)
    else:
        got = look_up(launch, blocks, mx.array(case.ids), case.dtype, factor=case.factor)
        want = np.float32(case.factor) * want[np.clip(case.ids, 0, len(want) - 1)]
    assert (got.shape, got.dtype) == (want.shape, case.dtype)
    most = ROUNDING[case.dtype] * np.abs(want) + SUMMING * np.abs(want).max()
    found: npt.NDArray[np.float64] = np.abs(wide(got) - want) / most
    return found
