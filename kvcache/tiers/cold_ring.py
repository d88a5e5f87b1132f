"""Encoded blocks in a ring of slots: what the cold tier is kept in, as MLX arrays.

Block number b lies in slot b mod slots. Slots are allocated in a few segments, the
first of one block, so that growing copies nothing, takes little more than is held, and
a kernel has few arrays to read. Knows no positions and no attention.
"""

from copy import copy
from dataclasses import replace
from itertools import pairwise

import mlx.core as mx

from kvcache.codecs.base import Codec, Encoded, Parts
from kvcache.snapshot import ColdBlocks, Run, Tokens, runs

_SEGMENTS = 8  # at most: as many as kernels take
_UNENCODED_BITS = 16
_DIM = 128  # of heads, as most have: bits hardly depend on it


def segment_sizes(slots: int, codecs: tuple[Codec, Codec], block: int) -> tuple[int, ...]:
    """Slots of each segment: one, and then so many that all grow by the same factor.

    By 3 where blocks take a third of 16 bits, else by 2, so that no more is taken than tokens
    take in 16 bits; by more where the segments would else be too many.
    """
    bits = sum(codec.bits_per_element(tokens=block, dim=_DIM) for codec in codecs) / len(codecs)
    factor = max(3.0 if 3 * bits <= _UNENCODED_BITS else 2.0, slots ** (1 / (_SEGMENTS - 1)))
    ends = [min(slots, round(factor**power)) for power in range(_SEGMENTS - 1)]
    pairs = pairwise([0, *ends, slots])
    return tuple(end - start for start, end in pairs if end > start)


class ColdRing:
    """Blocks of keys and values [B, Hkv, M, D], each encoded by its codec.

    held: all of it; slots come to it as they are needed.
    """

    def __init__(self, slots: int, *, block: int, codecs: tuple[Codec, Codec]) -> None:
        self.held = ColdBlocks(codecs=codecs, slots=segment_sizes(slots, codecs, block))
        self._block = block

    def write(self, number: int, tokens: Tokens[mx.array]) -> None:
        """Encode blocks [B, Hkv, N * M, D] and put them at numbers number .. number + N."""
        keys, values = (
            self._encode(codec, each) for codec, each in zip(self.held.codecs, tokens, strict=True)
        )
        self.put(number, keys, values)

    def put(self, number: int, keys: Encoded, values: Encoded) -> None:
        """Put encoded blocks, parts [N, B, Hkv, ...], at numbers number .. number + N."""
        count, batch, heads = next(iter(keys.parts.values())).shape[:3]
        segments, slots = [*self.held.segments], self.held.slots
        for run in runs(number, count, slots):
            while len(segments) <= run.segment:
                segments.append(self._empty(slots[len(segments)], batch, heads, keys.dim))
            some = slice(run.done, run.done + run.stop - run.at)
            made_keys, made_values = (
                {name: _written(before[name], run, part[some]) for name, part in new.parts.items()}
                for before, new in zip(segments[run.segment], (keys, values), strict=True)
            )
            segments[run.segment] = made_keys, made_values
        self.held = replace(self.held, segments=tuple(segments), dim=keys.dim)

    def shared(self) -> "ColdRing":
        """A copy: what one of the two writes the other does not see."""
        return copy(self)

    def places(self, block: int) -> dict[int, int]:
        """The bytes of each segment by where it lies; block: those of a block."""
        held = zip(self.held.segments, self.held.slots, strict=False)
        return {id(segment): slots * block for segment, slots in held}

    def pending(self) -> list[mx.array]:
        """Arrays that may still have to be evaluated."""
        return [part for pair in self.held.segments for parts in pair for part in parts.values()]

    @property
    def allocated(self) -> int:
        """Blocks that there is memory for now."""
        return sum(self.held.slots[: len(self.held.segments)])

    def _encode(self, codec: Codec, tokens: mx.array) -> Encoded:
        """Parts [N, B, Hkv, *trailing] of tokens [B, Hkv, N * M, D]."""
        batch, heads, length, dim = tokens.shape
        blocks = tokens.reshape(batch, heads, -1, self._block, dim)
        blocks = mx.moveaxis(blocks, 2, 0).reshape(-1, heads, self._block, dim)
        parts = codec.encode(blocks).parts
        count = length // self._block
        split = {name: part.reshape(count, batch, *part.shape[1:]) for name, part in parts.items()}
        return Encoded(parts=split, dim=dim)

    def _empty(self, slots: int, batch: int, heads: int, dim: int) -> tuple[Parts, Parts]:
        """A segment of so many slots."""
        keys, values = (
            {
                name: mx.zeros((slots, batch, heads, *spec.shape), spec.dtype)
                for name, spec in codec.shapes(self._block, dim).items()
            }
            for codec in self.held.codecs
        )
        return keys, values


def _written(part: mx.array, run: Run, blocks: mx.array) -> mx.array:
    """The part of a segment with blocks in it: another array, so a snapshot keeps what it saw.

    The start is a number, not an array, which would be a launch of its own.
    """
    if len(blocks) == len(part):
        # MLX would take the blocks themselves, which hold on to all that they were cut from.
        return mx.contiguous(blocks)
    made = copy(part)
    made[run.at : run.stop] = blocks
    return made
