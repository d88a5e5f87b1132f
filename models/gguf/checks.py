"""Whether the weights of tensors are finite, told by their bytes, at the speed of memory.

The kernels of the CPU have the same as `Kernels.are_finite`; this is for bytes that are read
without them. Floats that are NaN or infinite have all bits of their exponent set. Of blocks
only the scales are read: where these are finite all weights are.
"""

import numpy as np

from models.errors import GGUFError
from models.gguf.tensor import Bytes, Tensor
from models.gguf.tensor_types import TensorType

# Of a float: the bits of its exponent.
_HALF = np.uint16(0x7C00)
_EXPONENTS: dict[TensorType, np.uint16 | np.uint32] = {
    TensorType.F32: np.uint32(0x7F800000),
    TensorType.F16: _HALF,
    TensorType.BF16: np.uint16(0x7F80),
}
# Where the float16 numbers of a block lie, if not at its beginning.
_HALVES = {
    TensorType.Q4_1: (0, 2),
    TensorType.Q5_1: (0, 2),
    TensorType.Q2_K: (80, 82),
    TensorType.Q3_K: (108,),
    TensorType.Q4_K: (0, 2),
    TensorType.Q5_K: (0, 2),
    TensorType.Q6_K: (208,),
}
# Bytes looked at together, so that temporaries stay near the cores.
_PIECE = 1 << 20


def are_finite(kind: TensorType, data: Bytes) -> bool:
    """Whether all weights in bytes [rows, row bytes] of whole blocks are finite."""
    blocks = data.reshape(-1, kind.block_bytes)
    step = _PIECE // kind.block_bytes
    pieces = (blocks[start : start + step] for start in range(0, len(blocks), step))
    return all(_finite_blocks(kind, piece) for piece in pieces)


def not_finite(tensor: Tensor) -> GGUFError:
    """What is said of a tensor in which they are not."""
    what, maker = "a weight is NaN or infinite", "converter"
    if tensor.type.block_size > 1:
        what, maker = "a scale is NaN, infinite or too large", "quantizer"
    return GGUFError(
        f"tensor {tensor.name!r} ({tensor.type.name}): {what}; "
        f"the file is damaged or made by an unsound {maker}"
    )


def _finite_blocks(kind: TensorType, blocks: Bytes) -> bool:
    if kind in _EXPONENTS:
        return _finite_floats(blocks, _EXPONENTS[kind])
    if kind is TensorType.MXFP4:
        return _finite_powers(blocks)
    return all(_finite_floats(blocks[:, at : at + 2], _HALF) for at in _HALVES.get(kind, (0,)))


def _finite_floats(floats: Bytes, exponent: np.uint16 | np.uint32) -> bool:
    bits = floats.view(exponent.dtype)
    return not ((bits & exponent) == exponent).any()


def _finite_powers(blocks: Bytes) -> bool:
    """Of MXFP4: a power of two's exponent + 128, then nibbles of which magnitudes are 0 to 12."""
    exponents, codes = blocks[:, 0].astype(np.int16), blocks[:, 1:]
    high = exponents > 252
    if not high.any():
        return True
    magnitudes = np.array([0, 1, 2, 3, 4, 6, 8, 12])[
        np.maximum(codes[high] & 7, codes[high] >> 4 & 7)
    ]
    return bool((magnitudes.max(1) < 2.0 ** (256 - exponents[high])).all())
