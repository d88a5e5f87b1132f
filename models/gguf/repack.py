"""Tensors of a GGUF file as MLX arrays, in the layout `quantized_matmul` takes.

Quantized types stay quantized: their blocks become MLX's affine groups of 32
(see `affine`, `simple_blocks`, `kquants`), never float16 weights. Rows keep the
file's order; what the tensor is for, this module does not know. Blocks are read
in pieces, by a few threads that write straight into the arrays' memory; the
arrays themselves are made on the calling thread.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from models.errors import GGUFError
from models.gguf import kquants, simple_blocks
from models.gguf.affine import GROUP, BlockReader, Bytes, Groups
from models.gguf.header import TensorInfo
from models.gguf.tensor_types import TensorType

# Weights read at a time. Temporaries take about a byte a weight and stay near
# the cores; smaller pieces wait for Python's lock more than they compute.
_PIECE_WEIGHTS = 1 << 20
_MAX_THREADS = 8

_UNQUANTIZED: dict[TensorType, type[np.generic]] = {
    TensorType.F32: np.float32,
    TensorType.F16: np.float16,
    TensorType.BF16: np.uint16,
}
# Bits of a float, and of its infinity.
_INFINITY: dict[TensorType, tuple[int, int]] = {
    TensorType.F32: (32, 0x7F800000),
    TensorType.F16: (16, 0x7C00),
    TensorType.BF16: (16, 0x7F80),
}
_READERS: dict[TensorType, tuple[BlockReader, int]] = {
    TensorType.Q4_0: (simple_blocks.read_q4_0, 4),
    TensorType.Q4_1: (simple_blocks.read_q4_1, 4),
    TensorType.Q5_0: (simple_blocks.read_q5_0, 5),
    TensorType.Q5_1: (simple_blocks.read_q5_1, 5),
    TensorType.Q8_0: (simple_blocks.read_q8_0, 8),
    TensorType.Q2_K: (kquants.read_q2_k, 4),
    TensorType.Q3_K: (kquants.read_q3_k, 5),
    TensorType.Q4_K: (kquants.read_q4_k, 4),
    TensorType.Q5_K: (kquants.read_q5_k, 5),
    TensorType.Q6_K: (kquants.read_q6_k, 8),
    TensorType.IQ4_NL: (simple_blocks.read_iq4_nl, 8),
    TensorType.IQ4_XS: (simple_blocks.read_iq4_xs, 8),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantized:
    """Arguments of `mx.quantized_matmul(x, weight, scales, biases,
    transpose=True, group_size=group_size, bits=bits)`: `weight` is uint32
    [rows, columns * bits / 32], `scales` and `biases` float16
    [rows, columns / 32]."""

    weight: mx.array
    scales: mx.array
    biases: mx.array
    bits: int
    group_size: int = GROUP

    @property
    def nbytes(self) -> int:
        """Bytes in memory, scales and biases included."""
        return self.weight.nbytes + self.scales.nbytes + self.biases.nbytes


@dataclass(frozen=True, kw_only=True, eq=False)
class Unquantized:
    """A tensor kept as it is: float32, float16 or bfloat16, in its shape."""

    array: mx.array

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.array.nbytes


def stored_bits(kind: TensorType) -> int:
    """Bits of a code after repacking; of a whole weight for unquantized types."""
    if kind in _UNQUANTIZED:
        return 8 * kind.block_bytes
    return _READERS[kind][1] if kind in _READERS else 8


def stored_bytes(info: TensorInfo) -> int:
    """Bytes that a tensor takes in memory after repacking."""
    if info.type in _UNQUANTIZED:
        return info.nbytes
    scale_and_bias = 2 * 16 / GROUP
    return int(info.rows * info.columns * (stored_bits(info.type) + scale_and_bias)) // 8


def repack(info: TensorInfo, rows: Bytes) -> Quantized | Unquantized:
    """Bring a tensor's bytes, uint8 [rows, row bytes], into MLX's layout.

    Raises `GGUFError`, naming the tensor, where columns do not fill groups of
    32, the bytes do not match the shape, an unquantized weight is NaN or infinite, or
    a scale or bias is that or beyond float16.
    """
    if rows.nbytes != info.nbytes:
        raise GGUFError(f"tensor {info.name!r}: got {rows.nbytes} bytes, expected {info.nbytes}")
    if info.type in _UNQUANTIZED:
        return _unquantized(info, rows)
    if info.columns % GROUP:
        raise GGUFError(
            f"tensor {info.name!r}: {info.columns} columns, expected a multiple of {GROUP}"
        )
    return _quantized(info, rows)


def _unquantized(info: TensorInfo, rows: Bytes) -> Unquantized:
    if not _is_finite(rows.reshape(-1), info.type):
        raise GGUFError(
            f"tensor {info.name!r} ({info.type.name}): a weight is NaN or infinite; "
            "the file is damaged or made by an unsound converter"
        )
    array = mx.array(rows.reshape(-1).view(_UNQUANTIZED[info.type]).reshape(info.shape))
    return Unquantized(array=array.view(mx.bfloat16) if info.type is TensorType.BF16 else array)


def _is_finite(data: Bytes, kind: TensorType) -> bool:
    """Whether no float is NaN or infinite, at the speed of memory.

    Those have all bits of their exponent set, so that among numbers of one sign they
    are the largest integers: of signed ones without the sign bit, of unsigned ones with it.
    """
    bits, infinity = _INFINITY[kind]
    sign = 1 << bits - 1
    positive, negative = data.view(f"<i{bits // 8}").max(), data.view(f"<u{bits // 8}").max()
    return bool(positive < infinity and negative < sign + infinity)


def _quantized(info: TensorInfo, rows: Bytes) -> Quantized:
    if info.type not in _READERS:
        raise GGUFError(f"tensor {info.name!r} is {info.type.name}, which cannot be run yet")
    reader, bits = _READERS[info.type]
    groups = info.columns // GROUP
    weight = mx.zeros((info.rows, groups * bits), mx.uint32)
    scales = mx.zeros((info.rows, groups), mx.float16)
    biases = mx.zeros((info.rows, groups), mx.float16)
    mx.eval(weight, scales, biases)

    blocks = rows.reshape(-1, info.type.block_bytes)
    per_block = info.type.block_size // GROUP
    target = Groups(
        words=_memory(weight).reshape(-1, per_block, bits),
        scales=_memory(scales).reshape(-1, per_block),
        biases=_memory(biases).reshape(-1, per_block),
    )
    pieces = list(_pieces(blocks, target, _PIECE_WEIGHTS // info.type.block_size))
    with ThreadPoolExecutor(min(len(pieces), os.cpu_count() or 1, _MAX_THREADS)) as pool:
        finite = all(pool.map(lambda piece: _read(reader, *piece), pieces))
    if not finite:
        raise GGUFError(
            f"tensor {info.name!r} ({info.type.name}): a scale is NaN, infinite or beyond "
            "float16; the file is damaged or made by an unsound quantizer"
        )
    return Quantized(weight=weight, scales=scales, biases=biases, bits=bits)


def _memory(array: mx.array) -> npt.NDArray[Any]:
    """The array's own memory, to write to; it must be evaluated."""
    return np.asarray(array)


def _pieces(blocks: Bytes, target: Groups, step: int) -> Iterator[tuple[Bytes, Groups]]:
    for start in range(0, len(blocks), step):
        span = slice(start, start + step)
        yield (
            blocks[span],
            Groups(
                words=target.words[span],
                scales=target.scales[span],
                biases=target.biases[span],
            ),
        )


def _read(reader: BlockReader, blocks: Bytes, out: Groups) -> bool:
    """Run the reader; False where it met or made a scale that is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        reader(blocks, out)
    return bool(np.isfinite(out.scales).all() and np.isfinite(out.biases).all())
