"""MLX's affine layout: how codes lie in words, and how blocks come into it.

A row of quantized weights is three arrays: `weight` holds codes of 4, 5 or 8
bits, `scales` and `biases` one float16 each per group of 32 codes, and a
weight is scale * code + bias. Codes lie as one little-endian stream of bits,
the first code lowest, so a group fills exactly `bits` words of 32 bits:

    word      0                                    1
    bit       0    4    8    12   16   20 ... 28   0 ...
    4 bits    c0   c1   c2   c3   c4   c5 ... c7   c8 ...
    bit       0    5    10   15   20   25   30     3    8 ...
    5 bits    c0   c1   c2   c3   c4   c5   c6-----c7   c8 ...
    bit       0         8         16        24     0 ...
    8 bits    c0        c1        c2        c3     c4 ...

Everything here works on eight codes at a time, one to a byte of a uint64, so
that numpy's loops are few and stay in the cache. Knows no GGUF type.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

GROUP = 32

Bytes = npt.NDArray[np.uint8]
Lanes = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Where the groups of some blocks go: `words` uint32 [blocks, groups,
    bits], `scales` and `biases` float16 [blocks, groups]."""

    words: npt.NDArray[np.uint32]
    scales: npt.NDArray[np.float16]
    biases: npt.NDArray[np.float16]


BlockReader = Callable[[Bytes, Groups], None]
"""Fills the groups of `[blocks, block bytes]`; one per tensor type."""


def lanes(data: Bytes) -> Lanes:
    """Bytes `[..., 8 * n]` as contiguous uint64 `[..., n]`, copied once."""
    return np.ascontiguousarray(data.view("<u8"))


def each_byte(value: int) -> np.uint64:
    """A uint64 with `value` in each of its eight bytes."""
    return np.uint64(value * 0x0101010101010101)


def halves(data: Bytes) -> Floats:
    """Float16 numbers in bytes `[..., 2 * n]`, as float32 `[..., n]`."""
    return data.view("<f2").astype(np.float32)


def pack_nibbles(packed: Lanes, low: npt.NDArray[np.uint32], high: npt.NDArray[np.uint32]) -> None:
    """Sort ggml's nibble pairs into two runs of MLX's.

    A ggml byte holds code j in its low nibble and a code of another run in
    its high nibble. `packed` is [n, k] with eight such bytes each; `low` and
    `high` are [n, k] and receive eight codes each.
    """
    for source, target in ((packed, low), (packed >> np.uint64(4), high)):
        codes = source & each_byte(0x0F)
        target[...] = _join_nibbles(codes)


def _join_nibbles(codes: Lanes) -> npt.NDArray[np.uint32]:
    """Eight codes of 4 bits, one to a byte, into 32 bits each."""
    codes |= codes >> np.uint64(4)
    joined = codes.view("<u2").astype(np.uint8)
    return joined.reshape(*codes.shape[:-1], -1).view("<u4")


def pack_codes(codes: Lanes, words: npt.NDArray[np.uint32]) -> None:
    """Pack `[blocks, groups, 4]` lanes of codes; `words`' last axis is the bits.

    Works on `codes` in place, which are of no use afterwards.
    """
    bits = words.shape[-1]
    if bits == 8:
        words.view("<u8")[...] = codes
    elif bits == 4:
        words[...] = _join_nibbles(codes)
    else:
        _pack_five(codes, words)


def _pack_five(codes: Lanes, words: npt.NDArray[np.uint32]) -> None:
    for shift, even, odd in (
        (3, 0x001F001F001F001F, 0x03E003E003E003E0),
        (6, 0x000003FF000003FF, 0x000FFC00000FFC00),
        (12, 0x00000000000FFFFF, 0x000000FFFFF00000),
    ):
        kept = codes & np.uint64(even)
        codes >>= np.uint64(shift)
        codes &= np.uint64(odd)
        codes |= kept
    # Each lane now holds 40 bits of its group's 160.
    first, second, third, fourth = np.moveaxis(codes, -1, 0)
    words[..., 0] = first
    words[..., 1] = (first >> np.uint64(32)) | (second << np.uint64(8))
    words[..., 2] = (second >> np.uint64(24)) | (third << np.uint64(16))
    words[..., 3] = (third >> np.uint64(16)) | (fourth << np.uint64(24))
    words[..., 4] = fourth >> np.uint64(8)
