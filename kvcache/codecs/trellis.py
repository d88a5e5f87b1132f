"""Trellis-coded values: twice the levels for the same bits, allowed by what stands beside them.

Trellis-coded quantization (Marcellin and Fischer 1990) with Ungerboeck's code of 32
states, tail-biting. A channel has 2^(bits + 1) levels, ascending, and stores its level's
index but for bit 1, which follows from bit 0 of channels near by; the last channel and
the first are neighbours:

    channel   d-2  d-1   d   d+1  d+2  d+3
    bit 0      a         b    c         e
    index of d's level = rest << 2 | (a ^ c ^ e) << 1 | b,   code of d = rest << 1 | b

So decoding is a table of levels, as in `turbo`, after two exclusive ors. Encoding is
Viterbi's search: the five bits 0 of channels d-2 .. d+2, the last one lowest, are the
state before channel d; bit 0 of channel d+3, chosen there, leads to the next.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

import mlx.core as mx

from kvcache.codecs.base import ArraySpec, Codec, Encoded, Parts
from kvcache.codecs.fit import unbiased_scale
from kvcache.codecs.half import half_spec, nonzero, to_half
from kvcache.codecs.packing import pack, unpack, words_spec
from kvcache.codecs.turbo import CLIPS

UNIT = 44  # a level is a whole number of eight bits over it
# Each level is the mean of those numbers of N(0, 1) that the search codes by it, rounded.
_POSITIVE = {
    2: (8, 26, 47, 82),
    3: (4, 13, 21, 31, 42, 56, 76, 107),
    4: (2, 6, 10, 14, 18, 23, 27, 32, 37, 43, 49, 57, 67, 79, 97, 124),
}
SEAM = 32  # channels on each side of the first that are searched for the state there
_STATE_BITS = 5
_STATES = 1 << _STATE_BITS
SUBSETS = 4  # of levels: bits 0 and 1 of their indices


def _subset(register: int) -> int:
    """Bits 1 and 0 of the level's index: a state before a channel, and the bit chosen there."""
    return ((register ^ register >> 2 ^ register >> 5) & 1) << 1 | (register >> 3 & 1)


_SUBSET_OF = tuple(_subset(register) for register in range(2 * _STATES))
# Into state s lead s >> 1 (first row) and that with the bit set that leaves the register.
_SUBSET_INTO = tuple(
    tuple(_SUBSET_OF[oldest << _STATE_BITS | state] for state in range(_STATES))
    for oldest in (0, 1)
)


def levels(bits: int) -> tuple[float, ...]:
    """The 2^(bits + 1) levels, ascending; symmetric about 0."""
    positive = tuple(level / UNIT for level in _POSITIVE[bits])
    return tuple(-level for level in reversed(positive)) + positive


def lookup(codes: mx.array, bits: int) -> mx.array:
    """The levels of codes [..., D], float32."""
    low = codes & 1
    parity = mx.roll(low, 2, -1) ^ mx.roll(low, -1, -1) ^ mx.roll(low, -3, -1)
    return mx.array(levels(bits))[(codes >> 1) << 2 | parity << 1 | low]


def search(x: mx.array, bits: int) -> mx.array:
    """The codes [..., D], uint32, of levels about as near to x [..., D] as a path can be.

    A path must end in the state that it began in. That is chosen first, as the state
    where the nearest path through `SEAM` channels on each side crosses the first channel;
    the nearest path from there and back is found exactly. Of two alike the one from the
    lower state counts.
    """
    steps = _Steps.of(x, bits)
    free = mx.zeros((*x.shape[:-1], _STATES))
    around, costs = steps.walk(free, -SEAM, SEAM)
    *_, state = _states_before(around[SEAM:], costs.argmin(axis=-1))
    begun = mx.where(mx.arange(_STATES) == state[..., None], 0.0, mx.inf)
    path, _ = steps.walk(begun, 0, x.shape[-1])
    before = mx.stack(_states_before(path, state)[::-1], axis=-1)
    chosen = mx.roll(before, -1, -1) & 1
    subset = mx.array(_SUBSET_OF, mx.uint32)[before << 1 | chosen]
    rest = mx.take_along_axis(steps.rest, subset[..., None], axis=-1).squeeze(-1)
    return rest << 1 | (subset & 1)


def least_cost(x: mx.array, bits: int) -> mx.array:
    """The squared error [...] of the nearest path through x [..., D] that may end anywhere."""
    free = mx.zeros((*x.shape[:-1], _STATES))
    _, costs = _Steps.of(x, bits).walk(free, 0, x.shape[-1])
    return costs.min(axis=-1)


class _Steps(NamedTuple):
    """Of each channel and subset of levels [..., D, 4]: the nearest level's `rest` and cost."""

    rest: mx.array
    costs: mx.array

    @classmethod
    def of(cls, x: mx.array, bits: int) -> Self:
        table = mx.array(levels(bits)).reshape(-1, SUBSETS)  # [rest, subset]
        rest = mx.zeros((*x.shape, SUBSETS), mx.uint32)
        for middle in (table[1:] + table[:-1]) / 2:
            rest = rest + (x[..., None] > middle)
        nearest = mx.take_along_axis(table, rest.reshape(-1, SUBSETS), axis=0)
        return cls(rest, mx.square(x[..., None] - nearest.reshape(rest.shape)))

    def walk(self, costs: mx.array, first: int, end: int) -> tuple[list[mx.array], mx.array]:
        """Through channels [first, end), counted round, from states of `costs` [..., 32].

        Gives for each channel which of two states each state came from, and the costs
        after the last.
        """
        into = mx.array(_SUBSET_INTO, mx.uint32)
        came: list[mx.array] = []
        for channel in range(first, end):
            step = self.costs[..., channel % self.costs.shape[-2], :]
            before = mx.repeat(costs.reshape(*costs.shape[:-1], 2, -1), 2, axis=-1)
            both = before + mx.take(step, into, axis=-1)
            came.append(both[..., 1, :] < both[..., 0, :])
            costs = both.min(axis=-2)
        return came, costs


def _states_before(came: list[mx.array], state: mx.array) -> list[mx.array]:
    """The states on the way back to before the first channel of `came`, that one last."""
    states = []
    for oldest in reversed(came):
        bit = mx.take_along_axis(oldest, state[..., None], axis=-1).squeeze(-1)
        state = state >> 1 | bit.astype(mx.uint32) << (_STATE_BITS - 1)
        states.append(state)
    return states


@dataclass(frozen=True, kw_only=True)
class TrellisCodec(Codec):
    """words [M, W] of codes, scales [M]; value = scale * level.

    The scale is that of several clips of a token's largest whose path costs least, then
    freed of shrink.
    """

    def shapes(self, tokens: int, dim: int) -> Mapping[str, ArraySpec]:
        """Words, scales."""
        return {"words": words_spec(self.code_bits, tokens, dim), "scales": half_spec(tokens)}

    def decode_rotated(self, encoded: Encoded) -> mx.array:
        """scale * level."""
        codes = unpack(encoded.parts["words"], self.code_bits, encoded.dim)
        return lookup(codes, self.code_bits) * encoded.parts["scales"][..., None]

    def _encode(self, y: mx.array) -> Parts:
        largest = mx.abs(y).max(axis=-1, keepdims=True) / levels(self.code_bits)[-1]
        clips = mx.array(CLIPS)[:, None, None, None, None]
        costs = least_cost(y / nonzero(largest * clips), self.code_bits)
        best = (costs * mx.square(clips.squeeze(-1))).argmin(axis=0)
        scale = largest * mx.array(CLIPS)[best][..., None]
        codes = search(y / nonzero(scale), self.code_bits)
        scales = unbiased_scale(y, lookup(codes, self.code_bits))
        return {"words": pack(codes, self.code_bits), "scales": to_half(scales.squeeze(-1))}
