"""Encoded blocks in a ring of slots: what the cold tier is kept in, as MLX arrays.

Block number b lies in slot b mod slots. Slots are allocated in a few segments,
each as large as all before it, so that growing copies nothing and a kernel has
few arrays to read. Knows no positions and no attention.
"""

from collections.abc import Iterator
from typing import NamedTuple

import mlx.core as mx

from kvcache.codecs.base import Codec, Encoded, Parts

_SEGMENTS = 4


class Run(NamedTuple):
    """Blocks that lie side by side: slots [at, end) of a segment."""

    segment: int
    at: int
    end: int


def segment_sizes(slots: int) -> tuple[int, ...]:
    """Slots of each segment: an eighth of all, the same again, then doubling."""
    size = -(-slots // 2 ** (_SEGMENTS - 1))
    ends = []
    while size < slots:
        ends.append(size)
        size *= 2
    ends.append(slots)
    return tuple(end - start for start, end in zip([0, *ends[:-1]], ends, strict=True) if end)


class SlotMap:
    """Where numbered blocks lie."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.segments = segment_sizes(slots)
        self._starts = [sum(self.segments[:i]) for i in range(len(self.segments))]

    def runs(self, first: int, end: int) -> Iterator[Run]:
        """The blocks [first, end), at most `slots` of them, in order."""
        while first < end:
            slot = first % self.slots
            segment = max(i for i, start in enumerate(self._starts) if start <= slot)
            at = slot - self._starts[segment]
            blocks = min(end - first, self.segments[segment] - at)
            yield Run(segment, at, at + blocks)
            first += blocks


class ColdRing:
    """Blocks of keys and values [B, Hkv, M, D], each encoded by its codec."""

    def __init__(self, slots: int, *, block: int, keys: Codec, values: Codec) -> None:
        self.key_codec, self.value_codec = keys, values
        self.slot_map = SlotMap(slots)
        self._block = block
        self.dim = 0
        # [segment][keys, values] -> parts, each [slots, B, Hkv, *trailing]
        self.segments: list[tuple[dict[str, mx.array], dict[str, mx.array]]] = []

    def write(self, number: int, keys: mx.array, values: mx.array) -> None:
        """Encode blocks [B, Hkv, N * M, D] and put them at numbers number .. number + N."""
        dim = keys.shape[3]
        encoded = self._encode(self.key_codec, keys), self._encode(self.value_codec, values)
        self.put(number, *(Encoded(parts=parts, dim=dim) for parts in encoded))

    def put(self, number: int, keys: Encoded, values: Encoded) -> None:
        """Put encoded blocks, parts [N, B, Hkv, ...], at numbers number .. number + N."""
        self.dim = keys.dim
        count, batch, heads = next(iter(keys.parts.values())).shape[:3]
        done = 0
        for run in self.slot_map.runs(number, number + count):
            self._reserve(run.segment, batch, heads)
            for into, encoded in zip(self.segments[run.segment], (keys, values), strict=True):
                for name, part in encoded.parts.items():
                    cut = part[done : done + run.end - run.at]
                    # A new array each time: a view taken before keeps what it saw.
                    into[name] = mx.slice_update(into[name], cut, mx.array(run.at), axes=(0,))
            done += run.end - run.at

    def view(self, first: int, end: int) -> "ColdView":
        """The blocks [first, end) as they are now, whatever is written later."""
        runs = []
        for run in self.slot_map.runs(first, end):
            keys, values = (
                Encoded(
                    parts={n: part[run.at : run.end] for n, part in parts.items()}, dim=self.dim
                )
                for parts in self.segments[run.segment]
            )
            runs.append((keys, values))
        return ColdView(self.key_codec, self.value_codec, runs)

    def pending(self) -> list[mx.array]:
        """Arrays that may still have to be evaluated."""
        return [part for pair in self.segments for parts in pair for part in parts.values()]

    @property
    def allocated(self) -> int:
        """Blocks that there is memory for now."""
        return sum(self.slot_map.segments[: len(self.segments)])

    def release(self) -> None:
        """Give the memory back."""
        self.segments.clear()

    def _encode(self, codec: Codec, tokens: mx.array) -> Parts:
        """Parts [N, B, Hkv, *trailing] of tokens [B, Hkv, N * M, D]."""
        batch, heads, length, dim = tokens.shape
        blocks = tokens.reshape(batch, heads, -1, self._block, dim)
        blocks = mx.moveaxis(blocks, 2, 0).reshape(-1, heads, self._block, dim)
        parts = codec.encode(blocks).parts
        count = length // self._block
        return {name: part.reshape(count, batch, *part.shape[1:]) for name, part in parts.items()}

    def _reserve(self, segment: int, batch: int, heads: int) -> None:
        while len(self.segments) <= segment:
            slots = self.slot_map.segments[len(self.segments)]
            keys, values = (
                {
                    name: mx.zeros((slots, batch, heads, *spec.shape), spec.dtype)
                    for name, spec in codec.shapes(self._block, self.dim).items()
                }
                for codec in (self.key_codec, self.value_codec)
            )
            self.segments.append((keys, values))


class ColdView(NamedTuple):
    """Consecutive blocks: codecs, and keys and values of each run of blocks [n, B, Hkv, ...]."""

    key_codec: Codec
    value_codec: Codec
    runs: list[tuple[Encoded, Encoded]]

    @property
    def kv_heads(self) -> int:
        """Hkv."""
        return next(iter(self.runs[0][0].parts.values())).shape[2]

    def decoded(self) -> tuple[mx.array, mx.array]:
        """Keys and values [B, Hkv, blocks * M, D], float32."""
        keys = [side_by_side(self.key_codec.decode(keys)) for keys, _ in self.runs]
        values = [side_by_side(self.value_codec.decode(values)) for _, values in self.runs]
        return mx.concatenate(keys, axis=2), mx.concatenate(values, axis=2)

    def in_steps(self, blocks: int) -> Iterator[tuple[Encoded, Encoded]]:
        """The runs, cut to at most `blocks` blocks each."""
        for keys, values in self.runs:
            for at in range(0, count_blocks(keys), blocks):
                yield _cut(keys, at, at + blocks), _cut(values, at, at + blocks)


def count_blocks(encoded: Encoded) -> int:
    """Blocks of a run."""
    return next(iter(encoded.parts.values())).shape[0]


def _cut(encoded: Encoded, start: int, stop: int) -> Encoded:
    parts = {name: part[start:stop] for name, part in encoded.parts.items()}
    return Encoded(parts=parts, dim=encoded.dim)


def side_by_side(blocks: mx.array) -> mx.array:
    """[N, B, Hkv, M, D] -> [B, Hkv, N * M, D]."""
    count, batch, heads, tokens, dim = blocks.shape
    return mx.moveaxis(blocks, 0, 2).reshape(batch, heads, count * tokens, dim)
