"""How codes lie in words: MLX's own affine layout, one bit stream per token.

The codes of one token (D of them, 1 to 8 bits each) form one little-endian
stream of bits, channel 0 lowest; the last word is padded with zeros. So eight
codes fill exactly `bits` bytes, and 32 codes exactly `bits` words:

    word      0                                    1
    bit       0    4    8    12   16   20 ... 28   0 ...
    4 bits    c0   c1   c2   c3   c4   c5 ... c7   c8 ...
    bit       0    5    10   15   20   25   30     3    8 ...
    5 bits    c0   c1   c2   c3   c4   c5   c6-----c7   c8 ...
    bit       0    1    2    3    4    5  ... 31   0 ...
    1 bit     c0   c1   c2   c3   c4   c5 ... c31  c32 ...

Neighbouring channels are neighbours in memory, so neighbouring GPU lanes read
neighbouring words. For D a multiple of 32 the words are those of `mx.quantize`.
"""

import mlx.core as mx

from kvcache.codecs.base import ArraySpec

_RUN = 8  # codes that fill whole bytes, whatever their width


def words_per_token(bits: int, count: int) -> int:
    """Words of 32 bits that hold `count` codes."""
    return (bits * count + 31) // 32


def words_spec(bits: int, tokens: int, dim: int) -> ArraySpec:
    """What `pack` gives for codes [..., tokens, dim]."""
    return ArraySpec((tokens, words_per_token(bits, dim)), mx.uint32)


def pack(codes: mx.array, bits: int) -> mx.array:
    """Pack codes [..., count], each below 2^bits, into uint32 words [..., words]."""
    count = codes.shape[-1]
    runs = _padded(codes.astype(mx.uint64), -count % _RUN).reshape(*codes.shape[:-1], -1, _RUN)
    # Codes share no bit of a run, so adding is or-ing.
    joined = (runs << _shifts(bits)).sum(axis=-1, keepdims=True)
    stream = joined.view(mx.uint8)[..., :bits].flatten(-2)
    used = 4 * words_per_token(bits, count)
    held = stream.shape[-1]
    whole = _padded(stream, used - held) if held < used else stream[..., :used]
    return mx.contiguous(whole).view(mx.uint32)


def unpack(words: mx.array, bits: int, count: int) -> mx.array:
    """The codes [..., count], uint32, of words [..., words] made by `pack`."""
    stream = mx.contiguous(words).view(mx.uint8)
    used = (count + _RUN - 1) // _RUN * bits
    held = stream.shape[-1]
    stream = _padded(stream, used - held) if held < used else stream[..., :used]
    runs = stream.reshape(*words.shape[:-1], -1, bits)
    joined = mx.contiguous(_padded(runs, 8 - bits)).view(mx.uint64)  # [..., runs, 1]
    codes: mx.array = (joined >> _shifts(bits)) & (2**bits - 1)
    return codes.flatten(-2)[..., :count].astype(mx.uint32)


def _shifts(bits: int) -> mx.array:
    return mx.arange(_RUN, dtype=mx.uint64) * bits


def _padded(x: mx.array, width: int) -> mx.array:
    return mx.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width)]) if width else x
