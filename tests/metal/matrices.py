"""Matrices of blocks with something in them, and what they are in float64."""

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from models.gguf.tensor_types import TensorType
from models.gpu.blocks import Blocks
from tests.models.gguf.blocks import UNQUANTIZED, Bytes, random_rows, weights_of

# Runs of a grid are loaded for each row anew.
GRIDS_ON_GPU = (
    TensorType.IQ2_XXS,
    TensorType.IQ2_XS,
    TensorType.IQ2_S,
    TensorType.IQ3_XXS,
    TensorType.IQ3_S,
)
BLOCKS_ON_GPU = (
    TensorType.Q4_0,
    TensorType.Q4_1,
    TensorType.Q5_0,
    TensorType.Q5_1,
    TensorType.Q8_0,
    TensorType.Q2_K,
    TensorType.Q3_K,
    TensorType.Q4_K,
    TensorType.Q5_K,
    TensorType.Q6_K,
    TensorType.IQ4_NL,
    TensorType.IQ4_XS,
    TensorType.MXFP4,
    *GRIDS_ON_GPU,
)
ON_GPU = (*BLOCKS_ON_GPU, *UNQUANTIZED)
# Those whose blocks are all that is loaded of a matrix.
WITHOUT_GRID = tuple(kind for kind in ON_GPU if kind not in GRIDS_ON_GPU)


def rows_of(kind: TensorType, *, rows: int, columns: int, seed: int = 1) -> Bytes:
    """Random ones, as they lie in a file."""
    size = kind.block_size if kind.block_size > 1 else 32
    blocks = -(-columns // size)
    data = random_rows(kind, seed, rows=rows, blocks=blocks)
    return np.ascontiguousarray(data[:, : columns // kind.block_size * kind.block_bytes])


def held(kind: TensorType, data: Bytes) -> Blocks:
    """Rows as they lie in a file, on the GPU."""
    columns = data.shape[1] // kind.block_bytes * kind.block_size
    blocks = Blocks.empty(kind, rows=len(data), columns=columns)
    blocks.write(0, data)
    return blocks


def weights(kind: TensorType, data: Bytes) -> npt.NDArray[np.float64]:
    """[rows, columns], by gguf-py."""
    return weights_of(kind, data).astype(np.float64)


def wide(array: mx.array) -> npt.NDArray[np.float64]:
    """An array's numbers."""
    return np.array(array.astype(mx.float32), dtype=np.float64)
