"""A small network with all its matrices of one type, for truth by llama.cpp: a file for each.

The blocks are random bits, PCG64's as they come: so all of a type's codes, signs, integer scales
and places in tables come up, and every machine makes the same files. Only what a block has as
floats is chosen, subnormal ones among them.
"""

import hashlib
from collections.abc import Callable, Iterator
from math import log2
from pathlib import Path
from zlib import crc32

import numpy as np
import numpy.typing as npt

from models.gguf.tensor_types import TensorType
from tests.architectures import Shape, gain, random_bits, vector
from tests.gguf_factory import every_matrix, sentencepiece_tokenizer, write_file
from tests.models.gguf.blocks import FLOATS
from tests.tiny_files import VOCABULARY

# Of a few that were tried: no two best tokens of an answer are near each other.
SEED = 24
PROMPT = 43  # tokens
PURE = Shape(
    architecture="llama",
    layers=3,
    width=256,
    ffn=768,
    heads=8,
    kv_heads=2,
    head_dim=64,
    vocab=VOCABULARY,
    keys={"rope.dimension_count": 64},
    # Activations of 8 bits, llama.cpp's own for these types, move log-probabilities by a tenth.
    gains={"attn_q": 0.7, "attn_k": 0.7, "attn_output": 1.0, "output": 1.0},
)

Bytes = npt.NDArray[np.uint8]
Decode = Callable[[Bytes], npt.NDArray[np.float32]]


# Root mean square of random weights where a block's scale is 1.
_LEVELS = {
    TensorType.Q4_0: 4.6,
    TensorType.Q4_1: 4.6,
    TensorType.Q5_0: 9.2,
    TensorType.Q5_1: 9.2,
    TensorType.Q8_0: 74.0,
    TensorType.Q2_K: 13.8,
    TensorType.Q3_K: 43.0,
    TensorType.Q4_K: 258.0,
    TensorType.Q5_K: 526.0,
    TensorType.Q6_K: 1362.0,
    TensorType.IQ4_NL: 67.0,
    TensorType.IQ4_XS: 1249.0,
    TensorType.IQ2_XXS: 53.0,
    TensorType.IQ2_XS: 56.0,
    TensorType.IQ2_S: 56.0,
    TensorType.IQ3_XXS: 142.0,
    TensorType.IQ3_S: 141.0,
}
# So many scales are added or, by K-quants, taken away: then about as many weights are above 0 as
# are below.
_OFFSETS = {
    TensorType.Q4_1: -7.5,
    TensorType.Q5_1: -15.5,
    TensorType.Q2_K: 1.5,
    TensorType.Q4_K: 7.5,
    TensorType.Q5_K: 15.5,
}
# Of MXFP4, whose scales are powers of two: the same level, and the byte that means 1.
_MXFP4_LEVEL, _MXFP4_ONE = 2.9, 127


def tensors(kind: TensorType) -> Iterator[tuple[str, Bytes]]:
    """Names and bytes of all tensors: vectors F32 [size], matrices [rows, row bytes]."""
    for name, size in PURE.tensors():
        if len(size) == 1:
            yield name, vector(PURE, name, size, SEED).view(np.uint8)
        else:
            yield name, _matrix(kind, name, *size)


def write_pure(path: Path, kind: TensorType, *, decoded: Decode | None = None) -> Path:
    """Write the file whose matrices are of this type; with `decoded`, of what that makes of them.

    decoded: bytes [rows, row bytes] to float32 [rows, columns].
    """
    found = dict(tensors(kind))

    def data(name: str, size: tuple[int, ...]) -> Bytes:
        if decoded is None or len(size) == 1:
            return found[name]
        return decoded(found[name]).view(np.uint8)

    write_file(
        path,
        architecture=PURE.architecture,
        metadata={**PURE.metadata(), **sentencepiece_tokenizer(VOCABULARY)},
        shapes=dict(PURE.tensors()),
        types=every_matrix(kind if decoded is None else TensorType.F32),
        data=data,
    )
    return path


def fingerprint(kind: TensorType) -> str:
    """SHA-256 of all tensors' names and bytes."""
    digest = hashlib.sha256()
    for name, data in tensors(kind):
        digest.update(name.encode() + data.tobytes())
    return digest.hexdigest()


def _matrix(kind: TensorType, name: str, rows: int, columns: int) -> Bytes:
    """Its blocks, [rows, row bytes]; weights have the root mean square gain / sqrt(columns)."""
    level = gain(PURE, name) / np.sqrt(columns)
    blocks = rows * columns // kind.block_size
    seed = SEED, int(kind), crc32(name.encode())
    if kind.block_size == 1:
        return _floats(random_bits(blocks, *seed), kind, level).reshape(rows, -1)
    bits = random_bits(-(-blocks * kind.block_bytes // 8), *seed).view(np.uint8)
    data = bits[: blocks * kind.block_bytes].reshape(blocks, -1).copy()
    # Half to one and a half times what gives the level, by bits that nothing else is made of.
    own = random_bits(blocks, *seed, 1)
    factors = 0.5 + (own >> np.uint64(40)) / 2.0**24
    if kind is TensorType.MXFP4:
        middle = _MXFP4_ONE + round(log2(level / _MXFP4_LEVEL))
        data[:, 0] = middle - 1 + np.arange(blocks) % 3
    else:
        signs = 1.0 - 2.0 * (own % np.uint64(2))
        _put_scales(data, kind, signs * factors * level)
    return data.reshape(rows, -1)


def _put_scales(data: Bytes, kind: TensorType, levels: npt.NDArray[np.float64]) -> None:
    """Write the floats of blocks [blocks, bytes] so that their weights have these levels."""
    scale = (levels / _LEVELS[kind]).astype("<f2")
    numbers = scale, (scale.astype(np.float64) * _OFFSETS.get(kind, 0.0)).astype("<f2")
    for at, number in zip(FLOATS[kind], numbers, strict=False):
        data[:, at : at + 2] = number.view(np.uint8).reshape(-1, 2)


def _floats(bits: npt.NDArray[np.uint64], kind: TensorType, level: float) -> Bytes:
    """Numbers of this level, either sign: as many as there are bits."""
    between = (bits >> np.uint64(40)) / 2.0**23 - 1  # -1 to 1, level 1 / sqrt(3)
    numbers = (between * np.sqrt(3) * level).astype("<f4")
    narrowed = numbers.astype("<f2") if kind is TensorType.F16 else numbers
    data: Bytes = narrowed.view(np.uint8)
    if kind is TensorType.BF16:  # the upper halves
        data = data.reshape(-1, 4)[:, 2:].reshape(-1)
    return data
