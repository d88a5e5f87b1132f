"""Encoded blocks in a ring of slots: what the cold tier is kept in, as MLX arrays.

Block number b lies in slot b mod slots. Slots are allocated in a few segments,
each as large as all before it, so that growing copies nothing and a kernel has
few arrays to read. Knows no positions and no attention.
"""

from copy import copy

import mlx.core as mx

from kvcache.codecs.base import Codec, Encoded, Parts
from kvcache.snapshot import Run, Tokens, runs

_SEGMENTS = 4


def segment_sizes(slots: int) -> tuple[int, ...]:
    """Slots of each segment: an eighth of all, the same again, then doubling."""
    size = -(-slots // 2 ** (_SEGMENTS - 1))
    ends = []
    while size < slots:
        ends.append(size)
        size *= 2
    ends.append(slots)
    return tuple(end - start for start, end in zip([0, *ends[:-1]], ends, strict=True) if end)


class ColdRing:
    """Blocks of keys and values [B, Hkv, M, D], each encoded by its codec.

    slots: of each segment, allocated or not.
    segments: those that are, [keys, values] -> parts, each [slots, B, Hkv, *trailing].
    """

    def __init__(self, slots: int, *, block: int, codecs: tuple[Codec, Codec]) -> None:
        self.codecs = codecs
        self.slots = segment_sizes(slots)
        self.segments: list[tuple[Parts, Parts]] = []
        self.dim = 0
        self._block = block

    def write(self, number: int, tokens: Tokens[mx.array]) -> None:
        """Encode blocks [B, Hkv, N * M, D] and put them at numbers number .. number + N."""
        keys, values = (
            self._encode(codec, each) for codec, each in zip(self.codecs, tokens, strict=True)
        )
        self.put(number, keys, values)

    def put(self, number: int, keys: Encoded, values: Encoded) -> None:
        """Put encoded blocks, parts [N, B, Hkv, ...], at numbers number .. number + N."""
        self.dim = keys.dim
        count, batch, heads = next(iter(keys.parts.values())).shape[:3]
        for run in runs(number, count, self.slots):
            self._reserve(run.segment, batch, heads)
            some = slice(run.done, run.done + run.stop - run.at)
            old_keys, old_values = self.segments[run.segment]
            self.segments[run.segment] = (
                {
                    name: _written(old_keys[name], run, part[some])
                    for name, part in keys.parts.items()
                },
                {
                    name: _written(old_values[name], run, part[some])
                    for name, part in values.parts.items()
                },
            )

    def pending(self) -> list[mx.array]:
        """Arrays that may still have to be evaluated."""
        return [part for pair in self.segments for parts in pair for part in parts.values()]

    @property
    def allocated(self) -> int:
        """Blocks that there is memory for now."""
        return sum(self.slots[: len(self.segments)])

    def _encode(self, codec: Codec, tokens: mx.array) -> Encoded:
        """Parts [N, B, Hkv, *trailing] of tokens [B, Hkv, N * M, D]."""
        batch, heads, length, dim = tokens.shape
        blocks = tokens.reshape(batch, heads, -1, self._block, dim)
        blocks = mx.moveaxis(blocks, 2, 0).reshape(-1, heads, self._block, dim)
        parts = codec.encode(blocks).parts
        count = length // self._block
        split = {name: part.reshape(count, batch, *part.shape[1:]) for name, part in parts.items()}
        return Encoded(parts=split, dim=dim)

    def _reserve(self, segment: int, batch: int, heads: int) -> None:
        while len(self.segments) <= segment:
            slots = self.slots[len(self.segments)]
            keys, values = (
                {
                    name: mx.zeros((slots, batch, heads, *spec.shape), spec.dtype)
                    for name, spec in codec.shapes(self._block, self.dim).items()
                }
                for codec in self.codecs
            )
            self.segments.append((keys, values))


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
