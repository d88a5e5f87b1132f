"""The grids of ggml's IQ2 and IQ3 types: runs of weights' magnitudes that codes are numbers of.

gguf-py's own, so that nothing of them is copied here. Knows nothing of how blocks lie.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from models.gguf.tensor import Bytes
from models.gguf.tensor_types import TensorType

_BY_GRID = {
    TensorType.IQ2_XXS,
    TensorType.IQ2_XS,
    TensorType.IQ2_S,
    TensorType.IQ3_XXS,
    TensorType.IQ3_S,
}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """runs: magnitudes uint8 [runs, 8 or 4]. words: uint16 [runs], of each run the levels of its
    magnitudes, 2 or 4 bits each, the first lowest."""

    runs: Bytes
    words: npt.NDArray[np.uint16]


@cache
def grid_of(kind: TensorType) -> Grid | None:
    """Of a type; None where its codes are no numbers of runs."""
    if kind not in _BY_GRID:
        return None
    # A quarter of a second to import.
    from gguf import quants

    table = getattr(quants, kind.name)
    table.init_grid()
    runs = table.grid.reshape(table.grid_shape)
    levels = np.searchsorted(table.grid_map, runs)
    words = (levels << np.arange(runs.shape[1]) * (16 // runs.shape[1])).sum(axis=1)
    return Grid(runs=runs.astype(np.uint8), words=words.astype(np.uint16))
