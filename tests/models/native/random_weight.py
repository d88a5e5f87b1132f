"""Packed weights to multiply by, and what they stand for."""

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from models.native.packed import Weight

Double = npt.NDArray[np.float64]


def random_weight(
    rows: int,
    columns: int,
    bits: int,
    group: int,
    seed: int = 1,
    *,
    added: npt.NDArray[np.float32] | None = None,
) -> tuple[Weight, Double]:
    """A weight [rows, columns] for the kernels, and the numbers that MLX takes it for."""
    rng = np.random.default_rng(seed)
    unquantized = mx.array(rng.normal(size=(rows, columns)).astype(np.float32) * 0.07)
    codes, scales, biases = mx.quantize(unquantized, group_size=group, bits=bits)
    scales, biases = scales.astype(mx.float16), biases.astype(mx.float16)
    exact = mx.dequantize(
        codes, scales.astype(mx.float32), biases.astype(mx.float32), group_size=group, bits=bits
    )
    arrays = (np.asarray(array) for array in (codes, scales, biases))
    weight = Weight(*arrays, bits=bits, group=group, added=added)
    return weight, np.asarray(exact).astype(np.float64)
