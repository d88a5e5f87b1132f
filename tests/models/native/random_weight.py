"""Weights to multiply by, and what they stand for."""

import numpy as np
import numpy.typing as npt

from models.gguf.tensor_types import TensorType
from models.native.packed import Weight
from tests.gguf_factory import quantize
from tests.models.gguf.blocks import Bytes, random_rows, weights_of

Double = npt.NDArray[np.float64]


def random_weight(
    rows: int,
    columns: int,
    kind: TensorType,
    seed: int = 1,
    *,
    added: npt.NDArray[np.float32] | None = None,
) -> tuple[Weight, Double]:
    """A weight [rows, columns] for the kernels, and the numbers that gguf-py takes it for.

    Its memory is nowhere aligned and ends with its last row.
    """
    stored = _stored(rows, columns, kind, seed)
    data = np.concatenate([np.zeros(1, np.uint8), stored.reshape(-1)])[1:].reshape(stored.shape)
    exact = weights_of(kind, stored).astype(np.float64)
    return Weight(data, kind=kind, added=added), exact


def _stored(rows: int, columns: int, kind: TensorType, seed: int) -> Bytes:
    if kind.block_size > 1:
        return random_rows(kind, seed, rows=rows, blocks=columns // kind.block_size)
    weights = np.random.default_rng(seed).normal(size=(rows, columns)) * 0.07
    return quantize(weights, kind)
