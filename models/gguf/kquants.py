"""K-quants: super-blocks of 256 weights whose scales are quantized too.

Each reader turns `[blocks, block bytes]` of one ggml type into MLX groups of
32 (see `affine`). Layouts, in bytes, after ggml's `ggml-common.h`; `d` and
`dmin` are float16, s and m the quantized scales and minima of sub-blocks:

    Q2_K  16 s,m nibbles | 64 q | d | dmin        d*s*q - dmin*m      16-wide
    Q3_K  32 high bits | 64 q | 12 s | d          d*(s-32)*(q-4)      16-wide
    Q4_K  d | dmin | 12 s,m | 128 nibble pairs    d*s*q - dmin*m      32-wide
    Q5_K  d | dmin | 12 s,m | 32 high | 128 pairs d*s*q - dmin*m      32-wide
    Q6_K  128 low nibbles | 64 high | 16 s | d    d*s*(q-32)          16-wide

Q4_K and Q5_K keep every code; only their scales and biases are rounded, to
float16. The 16-wide types need one scale for two sub-blocks, so codes change:
in Q3_K and Q6_K the sub-block with the larger scale stays exact on a grid four
times as fine, and the other is rounded to that grid; in Q2_K both are rounded
to a grid over their common range. Each takes the fewest bits that add less than
5% to the variance of its own error; `tests.repack_error` prints the figures.
"""

import numpy as np
import numpy.typing as npt

from models.gguf.affine import (
    Bytes,
    Floats,
    Groups,
    Lanes,
    each_byte,
    halves,
    lanes,
    pack_codes,
    pack_nibbles,
)


def read_q4_k(blocks: Bytes, out: Groups) -> None:
    """4 bits: codes are q, the scale is d*s and the bias -dmin*m."""
    _scales_and_minima(blocks, out)
    pairs = lanes(blocks[:, 16:]).reshape(-1, 4)
    words = out.words.reshape(-1, 2, 4)
    pack_nibbles(pairs, words[:, 0], words[:, 1])


def read_q5_k(blocks: Bytes, out: Groups) -> None:
    """5 bits: codes are q, the scale is d*s and the bias -dmin*m."""
    _scales_and_minima(blocks, out)
    high = lanes(blocks[:, 16:48])
    pairs = lanes(blocks[:, 48:]).reshape(-1, 4, 4)
    codes = np.empty((len(blocks), 8, 4), np.uint64)
    for group in range(8):
        nibble = pairs[:, group // 2] >> np.uint64(4 * (group % 2)) & each_byte(0x0F)
        fifth = (high >> np.uint64(group) & each_byte(1)) << np.uint64(4)
        np.bitwise_or(nibble, fifth, out=codes[:, group])
    pack_codes(codes, out.words)


def read_q6_k(blocks: Bytes, out: Groups) -> None:
    """8 bits: codes are 4 * (q - 32) + 128 where the sub-block is exact."""
    low = lanes(blocks[:, :128]).reshape(-1, 2, 2, 4)
    high = lanes(blocks[:, 128:192]).reshape(-1, 2, 4)
    codes = np.empty((len(blocks), 2, 4, 4), np.uint64)
    for part in range(4):
        nibble = low[:, :, part % 2] >> np.uint64(4 * (part // 2)) & each_byte(0x0F)
        pair = high >> np.uint64(2 * part) & each_byte(3)
        codes[:, :, part] = nibble | pair << np.uint64(4)
    steps = halves(blocks[:, 208:210]) * blocks[:, 192:208].view(np.int8)
    _merge_symmetric(codes.reshape(-1, 8, 4), steps, 32, out)


def read_q3_k(blocks: Bytes, out: Groups) -> None:
    """5 bits: codes are 4 * (q - 4) + 16 where the sub-block is exact."""
    high = lanes(blocks[:, :32])
    low = lanes(blocks[:, 32:96]).reshape(-1, 2, 4)
    codes = np.empty((len(blocks), 8, 4), np.uint64)
    for group in range(8):
        pair = low[:, group // 4] >> np.uint64(2 * (group % 4)) & each_byte(3)
        codes[:, group] = pair | (high >> np.uint64(group) & each_byte(1)) << np.uint64(2)
    steps = halves(blocks[:, 108:110]) * _q3_scales(blocks[:, 96:108])
    _merge_symmetric(codes, steps, 4, out)


def read_q2_k(blocks: Bytes, out: Groups) -> None:
    """4 bits over the common range of two sub-blocks."""
    low = lanes(blocks[:, 16:80]).reshape(-1, 2, 4)
    codes = np.empty((len(blocks), 8, 4), np.uint64)
    for group in range(8):
        codes[:, group] = low[:, group // 4] >> np.uint64(2 * (group % 4)) & each_byte(3)
    steps = halves(blocks[:, 80:82]) * (blocks[:, :16] & 15)
    starts = -halves(blocks[:, 82:84]) * (blocks[:, :16] >> 4)
    _merge_ranges(codes, steps, starts, 3, out)


def _scales_and_minima(blocks: Bytes, out: Groups) -> None:
    """The shared start of Q4_K and Q5_K: eight 6-bit s and eight 6-bit m.

        byte     0-3       4-7       8-11
        bits     ssAAAAAA  mmBBBBBB  bbbbaaaa

    A, B are s and m of sub-blocks 0-3; aaaa, bbbb the low bits of those of
    4-7, whose high bits are ss and mm.
    """
    packed = blocks[:, 4:16].reshape(-1, 3, 4)
    scales = np.empty((len(blocks), 8), np.float32)
    minima = np.empty((len(blocks), 8), np.float32)
    scales[:, :4] = packed[:, 0] & 63
    minima[:, :4] = packed[:, 1] & 63
    scales[:, 4:] = packed[:, 2] & 15 | packed[:, 0] >> 6 << 4
    minima[:, 4:] = packed[:, 2] >> 4 | packed[:, 1] >> 6 << 4
    out.scales[...] = scales * halves(blocks[:, :2])
    out.biases[...] = minima * -halves(blocks[:, 2:4])


def _q3_scales(packed: Bytes) -> Floats:
    """Sixteen 6-bit scales less 32: bytes 0-7 hold the low four bits of s0-s7
    and s8-s15, bytes 8-11 the high two of s[j], s[j+4], s[j+8], s[j+12]."""
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    high = np.concatenate([packed[:, 8:] >> shift & 3 for shift in (0, 2, 4, 6)], axis=1)
    scales: Floats = (low | high << 4).astype(np.float32) - 32
    return scales


def _merge_symmetric(codes: Lanes, steps: Floats, zero: int, out: Groups) -> None:
    """Weights step * (code - zero), two `steps` to a group of `codes`.

    The larger step over 4 is the group's scale: codes of that sub-block are
    multiplied by 4 exactly, those of the other by 4 * ratio and rounded.
    """
    pairs = steps.reshape(-1, 2)
    first, second = pairs[:, :1], pairs[:, 1:]
    largest = np.where(np.abs(first) >= np.abs(second), first, second)
    # At -1 the lowest code would become 8 * zero, one more than there are.
    ratios: Floats = np.maximum(pairs / _nonzero(largest), -0.99)
    out.scales[...] = (largest / 4).reshape(out.scales.shape)
    np.multiply(out.scales, np.float16(-4 * zero), out=out.biases)
    top = 2 * zero - 1
    starts = 4 * zero * (1 - ratios)
    _recode(codes, starts, starts + 4 * top * ratios, top, out.words)


def _merge_ranges(codes: Lanes, steps: Floats, starts: Floats, top: int, out: Groups) -> None:
    """Weights step * code + start, two of each to a group; codes reach `top`."""
    starts, ends = starts.reshape(-1, 2), (starts + top * steps).reshape(-1, 2)
    lows, highs = np.minimum(starts, ends), np.maximum(starts, ends)
    low = np.minimum(lows[:, 0], lows[:, 1])
    high = np.maximum(highs[:, 0], highs[:, 1])
    limit = (1 << out.words.shape[-1]) - 1
    out.scales[...] = ((high - low) / limit).reshape(out.scales.shape)
    out.biases[...] = low.reshape(out.biases.shape)
    # Codes are counted on the grid as rounded to float16.
    scale = out.scales.reshape(-1, 1).astype(np.float32)
    bias = out.biases.reshape(-1, 1).astype(np.float32)
    inverse = np.float32(1) / _nonzero(scale)
    _recode(codes, (starts - bias) * inverse, (ends - bias) * inverse, top, out.words)


def _nonzero(divisors: Floats) -> Floats:
    """Zeros replaced by one: what they divide is zero, or is clipped later."""
    return np.where(divisors == 0, np.float32(1), divisors)


def _recode(
    codes: Lanes, starts: Floats, ends: Floats, top: int, words: npt.NDArray[np.uint32]
) -> None:
    """Map codes 0..top of each sub-block onto starts..ends, round, and pack.

    In fixed point with 8 bits of fraction, four codes to a uint64:

        bit   63      48       32       16       0
              | code   | code   | code   | code   |   times slope, plus start
              | new|fr | new|fr | new|fr | new|fr |

    No field over- or underflows, as both ends lie within 0..2**bits - 1, so a
    negative slope, too, is right modulo 2**64.
    """
    limit = (1 << words.shape[-1]) - 1
    starts, ends = np.clip(starts, 0, limit + 0.25), np.clip(ends, 0, limit + 0.25)
    slopes = np.rint((ends - starts) * (256 / top)).astype(np.int64).view(np.uint64).reshape(-1)
    halved = np.rint(starts * 256 + 128).astype(np.int64).view(np.uint64).reshape(-1)
    halved *= np.uint64(0x0001000100010001)
    low, byte = np.uint64(0x00FF00FF00FF00FF), np.uint64(8)
    for lane in np.moveaxis(codes.reshape(-1, 2), -1, 0):
        even = (lane & low) * slopes + halved
        odd = (lane >> byte & low) * slopes + halved
        lane[...] = (even >> byte & low) | (odd & ~low)
    pack_codes(codes, words)
