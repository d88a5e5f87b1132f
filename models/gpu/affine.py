"""Q4_1 and Q5_1 as MLX's affine groups, which MLX's own kernels multiply.

Of these types alone the groups are exactly the blocks: a float16 scale and bias of 32 codes,
in as many bytes. Only where they lie is another place:

    a block   d | m | of Q5_1: 32 fifth bits | 16 bytes: code j below, code j + 16 above
    a group   in `weight` its 32 codes, one stream of bits, the first code lowest;
              in `scales` d, in `biases` m
"""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from models.gguf.tensor import Bytes, Tensor
from models.gguf.tensor_types import TensorType
from models.gpu.reading import read_rows

GROUP = 32
BITS = {TensorType.Q4_1: 4, TensorType.Q5_1: 5}


class AffineLinear(nn.Module):
    """y = x W^T + b with the rows of tensors of one of these types, as the network asks it."""

    def __init__(self, tensors: Sequence[Tensor], bias: mx.array | None, dtype: mx.Dtype) -> None:
        """dtype: of activations. Raises `GGUFError` where the file is shorter than it was."""
        super().__init__()
        kind, groups = tensors[0].type, tensors[0].columns // GROUP
        self._bits, self._dtype = BITS[kind], dtype
        self.rows = sum(tensor.rows for tensor in tensors)
        self.weight = mx.zeros((self.rows, groups * self._bits), mx.uint32)
        self.scales, self.biases = (mx.zeros((self.rows, groups), mx.float16) for _ in "sb")
        if bias is not None:
            self.bias = bias
        mx.eval(self.weight, self.scales, self.biases)
        codes, scales, biases = map(np.asarray, (self.weight, self.scales, self.biases))

        def put(first: int, rows: Bytes) -> None:
            to = slice(first, first + len(rows))
            words, numbers = regrouped(kind, rows.reshape(-1, kind.block_bytes))
            codes[to] = words.reshape(len(rows), -1)
            scales[to], biases[to] = (each.reshape(len(rows), -1) for each in numbers.T)

        read_rows(tensors, put)

    def __call__(self, x: mx.array) -> mx.array:
        y: mx.array = mx.quantized_matmul(
            x,
            self["weight"],
            self["scales"],
            self["biases"],
            transpose=True,
            group_size=GROUP,
            bits=self._bits,
        )
        return y + self["bias"] if "bias" in self else y

    def look_up(self, ids: mx.array, scale: float) -> mx.array:
        ids = mx.clip(ids, 0, self.rows - 1)
        # In float32, as MLX computes in the dtype of the scales, which would round a product too.
        scales, biases = (self[name][ids].astype(mx.float32) for name in ("scales", "biases"))
        words = self["weight"][ids]
        found = mx.dequantize(words, scales, biases, group_size=GROUP, bits=self._bits)
        return (found if scale == 1 else found * scale).astype(self._dtype)


def regrouped(
    kind: TensorType, blocks: Bytes
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float16]]:
    """Blocks uint8 [n, block bytes] -> words of codes [n, bits], d and m [n, 2]."""
    bits, pairs = BITS[kind], blocks[:, -16:]
    codes = np.concatenate([pairs & 15, pairs >> 4], axis=1)
    if bits == 5:
        codes |= np.unpackbits(blocks[:, 4:8], axis=1, bitorder="little") << 4
    return _stream(codes, bits), blocks[:, :4].copy().view(np.float16)


def _stream(codes: Bytes, bits: int) -> npt.NDArray[np.uint32]:
    """Codes [n, 32] -> [n, bits]: neighbours move together, two, four, then eight of them."""
    lanes: npt.NDArray[np.unsignedinteger] = codes
    for width, held in ((8, bits), (16, 2 * bits), (32, 4 * bits)):
        lanes = lanes.view(f"<u{width // 4}")
        number = lanes.dtype.type
        lanes = lanes & number((1 << width) - 1) | lanes >> number(width) << number(held)
    eights = lanes.view(np.uint8).reshape(-1, 8)[:, :bits]
    return eights.reshape(len(codes), -1).view("<u4")
