"""Weights to multiply by, and what they stand for."""

import gguf
import numpy as np
import numpy.typing as npt

from models.gguf.tensor_types import TensorType
from models.native.packed import Weight
from tests.gguf_factory import quantize

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
    rng = np.random.default_rng(seed)
    stored = quantize(rng.normal(size=(rows, columns)).astype(np.float32) * 0.07, kind)
    data = np.concatenate([np.zeros(1, np.uint8), stored.reshape(-1)])[1:].reshape(stored.shape)
    exact = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType(int(kind)))
    return Weight(data, kind=kind, added=added), exact.astype(np.float64)
