"""Blocks with one scale per 32 weights, and the codebook types.

Each reader turns `[blocks, block bytes]` of one ggml type into MLX groups
(see `affine`) without loss, but for IQ4_XS, whose scale d * s is rounded to
float16. Layouts, in bytes, after ggml's `ggml-common.h`; `d` and `m` are
float16, nibbles hold weight j below and weight j + 16 above:

    Q4_0    d | 16 nibble pairs                 d * (q - 8)
    Q4_1    d | m | 16 nibble pairs             d * q + m
    Q5_0    d | 32 high bits | 16 nibble pairs  d * (q - 16)
    Q5_1    d | m | 32 high bits | 16 pairs     d * q + m
    Q8_0    d | 32 int8                         d * q
    IQ4_NL  d | 16 nibble pairs                 d * K[q]
    IQ4_XS  d | u16 high | 4 low | 8 x 16 pairs d * (s - 32) * K[q], eight s of 6 bits
"""

import numpy as np
import numpy.typing as npt

from models.gguf.affine import (
    Bytes,
    Groups,
    Lanes,
    each_byte,
    halves,
    lanes,
    pack_codes,
    pack_nibbles,
)

# The codebook K of IQ4_NL and IQ4_XS (ggml's kvalues_iq4nl), moved by 128 so
# that it fits unsigned codes.
CODEBOOK = (
    np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]) + 128
).astype(np.uint8)
_LOW_CODE = CODEBOOK[np.arange(256) & 15]
_HIGH_CODE = CODEBOOK[np.arange(256) >> 4]

# Byte -> eight bytes, of which byte j is 16 where bit j was set.
_FIFTH_BITS: npt.NDArray[np.uint64] = (
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little") << 4
).view("<u8")[:, 0]


def read_q4_0(blocks: Bytes, out: Groups) -> None:
    """Codes are q, the bias is -8d."""
    _symmetric(blocks, 8, out)
    _nibbles(blocks[:, 2:], out.words)


def read_q4_1(blocks: Bytes, out: Groups) -> None:
    """Codes are q, the bias is m."""
    _offset(blocks, out)
    _nibbles(blocks[:, 4:], out.words)


def read_q5_0(blocks: Bytes, out: Groups) -> None:
    """Codes are q, the bias is -16d."""
    _symmetric(blocks, 16, out)
    _five_bits(blocks[:, 2:], out.words)


def read_q5_1(blocks: Bytes, out: Groups) -> None:
    """Codes are q, the bias is m."""
    _offset(blocks, out)
    _five_bits(blocks[:, 4:], out.words)


def read_q8_0(blocks: Bytes, out: Groups) -> None:
    """Codes are q + 128, which flips the top bit; the bias is -128d."""
    _symmetric(blocks, 128, out)
    np.bitwise_xor(lanes(blocks[:, 2:]), each_byte(0x80), out=out.words[:, 0].view("<u8"))


def read_iq4_nl(blocks: Bytes, out: Groups) -> None:
    """Codes are K[q] + 128 in 8 bits, the bias is -128d."""
    _symmetric(blocks, 128, out)
    _codebook(blocks[:, None, 2:], out.words)


def read_iq4_xs(blocks: Bytes, out: Groups) -> None:
    """Codes are K[q] + 128 in 8 bits, the scale is d * (s - 32)."""
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=-1).reshape(-1, 8)
    high = blocks[:, 2:4].view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    steps = (low | high.astype(np.uint8) << 4).astype(np.float32) - 32
    scales = halves(blocks[:, :2]) * steps
    out.scales[...] = scales
    np.multiply(out.scales, np.float16(-128), out=out.biases)
    _codebook(blocks[:, 8:].reshape(-1, 8, 16), out.words)


def _symmetric(blocks: Bytes, zero: int, out: Groups) -> None:
    """Scale d from the block's start; the bias puts weight 0 at code `zero`."""
    out.scales[...] = blocks[:, :2].view("<f2")
    np.multiply(out.scales, np.float16(-zero), out=out.biases)


def _offset(blocks: Bytes, out: Groups) -> None:
    """Scale d and bias m from the block's start."""
    out.scales[...] = blocks[:, :2].view("<f2")
    out.biases[...] = blocks[:, 2:4].view("<f2")


def _nibbles(pairs: Bytes, words: npt.NDArray[np.uint32]) -> None:
    pack_nibbles(lanes(pairs), words[:, 0, :2], words[:, 0, 2:])


def _five_bits(data: Bytes, words: npt.NDArray[np.uint32]) -> None:
    """`data` is 4 bytes of high bits, then 16 of nibble pairs."""
    pairs = lanes(data[:, 4:])
    codes: Lanes = np.take(_FIFTH_BITS, data[:, :4])
    codes[:, :2] |= pairs & each_byte(0x0F)
    codes[:, 2:] |= pairs >> np.uint64(4) & each_byte(0x0F)
    pack_codes(codes[:, None], words)


def _codebook(pairs: Bytes, words: npt.NDArray[np.uint32]) -> None:
    codes = words.view(np.uint8)
    codes[..., :16] = np.take(_LOW_CODE, pairs)
    codes[..., 16:] = np.take(_HIGH_CODE, pairs)
