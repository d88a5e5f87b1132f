"""Blocks of every type with random codes and sane scales, and gguf-py's word on them."""

import gguf
import numpy as np
import numpy.typing as npt

from models.gguf.tensor import Tensor
from models.gguf.tensor_types import TensorType

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

UNQUANTIZED = (TensorType.F32, TensorType.F16, TensorType.BF16)
QUANTIZED = tuple(kind for kind in TensorType if kind not in UNQUANTIZED)
# Where the float16 fields of a block lie.
FLOATS: dict[TensorType, tuple[int, ...]] = dict.fromkeys(QUANTIZED, (0,)) | {
    TensorType.Q4_1: (0, 2),
    TensorType.Q5_1: (0, 2),
    TensorType.Q2_K: (80, 82),
    TensorType.Q3_K: (108,),
    TensorType.Q4_K: (0, 2),
    TensorType.Q5_K: (0, 2),
    TensorType.Q6_K: (208,),
    TensorType.MXFP4: (),
}


def random_rows(kind: TensorType, seed: int, *, rows: int = 13, blocks: int = 3) -> Bytes:
    """[rows, row bytes]: every bit random but for the scales of the blocks, up to 0.02.

    Unquantized types have `blocks` * 32 weights in a row, up to 1.
    """
    rng = np.random.default_rng(seed)
    if kind in UNQUANTIZED:
        floats = rng.uniform(-1, 1, (rows, blocks * 32)).astype(np.float32)
        made: Bytes = gguf.quants.quantize(floats, gguf.GGMLQuantizationType(int(kind)))
        return made.view(np.uint8)
    data = rng.integers(0, 256, (rows * blocks, kind.block_bytes), np.uint8)
    for at in FLOATS[kind]:
        scales = rng.uniform(-0.02, 0.02, (len(data), 1)).astype(np.float16)
        data[:, at : at + 2] = scales.view(np.uint8)
    if kind is TensorType.MXFP4:  # a power of two: 2^(e - 127)
        data[:, 0] = rng.integers(110, 124, len(data))
    return data.reshape(rows, -1)


def tensor_of(kind: TensorType, rows: Bytes, name: str = "blk.7.ffn_up.weight") -> Tensor:
    """A matrix of such rows."""
    columns = rows.shape[1] // kind.block_bytes * kind.block_size
    return Tensor(name=name, type=kind, shape=(len(rows), columns), data=rows)


def of_floats(name: str, array: npt.NDArray[np.float32]) -> Tensor:
    """A float32 tensor [rows, columns] or [size]."""
    rows = np.ascontiguousarray(array).reshape(-1, array.shape[-1]).view(np.uint8)
    return Tensor(name=name, type=TensorType.F32, shape=array.shape, data=rows)


def weights_of(kind: TensorType, rows: Bytes) -> Floats:
    """[rows, columns], as gguf-py reads them."""
    found: Floats = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(int(kind)))
    return found
