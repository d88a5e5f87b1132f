"""What the bytes of a tensor mean: its weights as numbers, by gguf-py.

Nothing of ember's own kernels is in it, so that it is their oracle. Rows are read and
decoded in pieces, by a few threads that write straight into the result.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from kvcache.errors import quoted
from models.errors import GGUFError
from models.gguf.checks import not_finite
from models.gguf.tensor import Bytes, Tensor
from models.gguf.tensor_types import TensorType

Floats = npt.NDArray[np.float32]

# Weights decoded at a time. Temporaries take some 20 bytes a weight.
_PIECE_WEIGHTS = 1 << 20
_MAX_THREADS = 8


def decode(tensor: Tensor) -> Floats:
    """A tensor's weights in its shape: gguf-py's `dequantize`, to the bit.

    `mlx.core.array` makes an MLX array of them. Raises `GGUFError`, naming the tensor,
    where a weight is NaN or infinite, or the file is shorter than it was.
    """
    if not isinstance(tensor, Tensor):
        raise GGUFError(f"got tensor={quoted(tensor)}, expected what a file's `tensor` gives")
    out = np.empty((tensor.rows, tensor.columns), np.float32)
    decode_into(tensor, out)
    return out.reshape(tensor.shape)


def decode_into(tensor: Tensor, out: npt.NDArray[np.floating]) -> None:
    """The same into floats [rows, columns], which may be narrower; what these cannot hold
    is refused as what is infinite is."""
    step = max(1, _PIECE_WEIGHTS // tensor.columns)
    starts = range(0, tensor.rows, step)

    def piece(start: int) -> bool:
        target = out[start : start + step]
        rows = np.empty((len(target), tensor.data.shape[1]), np.uint8)
        tensor.read(rows, start)
        with np.errstate(over="ignore", invalid="ignore"):
            target[...] = _decoded(tensor.type, rows)
        return bool(np.isfinite(target).all())

    if len(starts) == 1:  # a vector: a thread would take longer than it
        finite = piece(0)
    else:
        with ThreadPoolExecutor(min(len(starts), os.cpu_count() or 1, _MAX_THREADS)) as pool:
            finite = all(pool.map(piece, starts))
    if not finite:
        raise not_finite(tensor)


def _decoded(kind: TensorType, rows: Bytes) -> Floats:
    match kind:
        case TensorType.F32:
            return rows.view(np.float32)
        case TensorType.F16:
            return rows.view(np.float16).astype(np.float32)
        case TensorType.BF16:
            return (rows.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    # A quarter of a second to import, and only where nothing else reads the blocks.
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    weights: Floats = dequantize(rows, GGMLQuantizationType(int(kind)))
    return weights
