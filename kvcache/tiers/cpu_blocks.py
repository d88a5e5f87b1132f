"""Encoded blocks in CPU memory, as the kernels write and read them.

Block number b lies in slot b mod slots of a few segments, as in `cold_ring`. Copies share blocks.
"""

from collections.abc import Sequence
from copy import copy
from ctypes import addressof
from typing import NamedTuple

import numpy as np

from kvcache.codecs.base import Codec, Encoded, Parts
from kvcache.cpu_memory import zeros
from kvcache.native import structs
from kvcache.native.codec import CpuCodec, Role
from kvcache.native.structs import Bytes, Floats, address
from kvcache.snapshot import Run, Tokens, runs
from kvcache.tiers.cold_ring import segment_sizes
from kvcache.tiers.cpu_ring import CpuTokens


class _Piece(NamedTuple):
    """Records of keys and of values, [slots, B, Hkv, record bytes] each, from slot `first` on."""

    first: int
    records: tuple[Bytes, ...]


class _Segment:
    """Slots of records in one piece of memory; in more, once what was written here is shared.

    Copies read the same pieces. What one of them writes then lies in a new piece, as large as
    what is written, so that blocks that several hold are held once.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        self._shapes = shapes  # of a record of keys, and of values
        self._pieces: list[_Piece | None] = []
        self._owned = 0  # the pieces from here on nobody else reads
        self._where = np.full(0, -1)  # of each slot, its piece

    @classmethod
    def of(cls, slots: int, shapes: Sequence[tuple[int, ...]]) -> "_Segment":
        """Empty slots."""
        made = cls(shapes)
        made._where = np.full(slots, -1)
        made.opened(0, slots)
        return made

    def shared(self) -> "_Segment":
        """A copy, after which both write elsewhere."""
        self._owned = len(self._pieces)
        made = copy(self)
        made._pieces, made._where = [*self._pieces], self._where.copy()
        return made

    def opened(self, at: int, stop: int) -> list[Bytes]:
        """The memory of slots [at, stop), which are to be written."""
        which = int(self._where[at])
        if which < self._owned or (self._where[at:stop] != which).any():
            which = len(self._pieces)
            records = tuple(zeros((stop - at, *shape), np.uint8) for shape in self._shapes)
            if self._pieces:
                # A kernel attends to what a slot holds before it writes there.
                for role, into in enumerate(records):
                    into[...] = self.read(role, at, stop)
            self._pieces.append(_Piece(at, records))
            self._where[at:stop] = which
            held = {*self._where.tolist()}
            self._pieces = [each if n in held else None for n, each in enumerate(self._pieces)]
        return [self._in_piece(which, role, at, stop) for role in range(len(self._shapes))]

    def read(self, role: int, at: int, stop: int) -> Bytes:
        """The records of keys (role 0) or values (1) in slots [at, stop)."""
        which = self._where[at:stop].tolist()
        if len({*which}) == 1:
            return self._in_piece(which[0], role, at, stop)
        found = [self._in_piece(n, role, at + i, at + i + 1) for i, n in enumerate(which)]
        return np.concatenate(found)

    def _in_piece(self, which: int, role: int, at: int, stop: int) -> Bytes:
        piece = self._pieces[which]
        assert piece is not None, "a piece that slots lie in is kept"
        return piece.records[role][at - piece.first : stop - piece.first]


class CpuBlocks:
    """Blocks of keys and values as records, for `batch` rows. Make one by `of`."""

    def __init__(
        self, segments: Sequence[int], batch: int, keys: CpuCodec, values: CpuCodec
    ) -> None:
        self._slots, slots = segments, sum(segments)
        self._batch = batch
        self._codecs = keys, values
        self._segments: list[_Segment] = []
        self._end = 0  # of the blocks that were ever written
        # Where each slot's records begin, twice over, so that no range of slots wraps.
        self._addresses = zeros((2, 2 * slots), np.int64)

    def shared(self) -> "CpuBlocks":
        """A copy that takes memory for what one of the two writes from now on."""
        made = copy(self)
        made._segments = [segment.shared() for segment in self._segments]
        made._addresses = zeros(self._addresses.shape, np.int64)
        made._addresses[...] = self._addresses
        return made

    @classmethod
    def of(
        cls, slots: int, *, block: int, shape: tuple[int, int, int], codecs: tuple[Codec, Codec]
    ) -> "CpuBlocks | None":
        """A ring for tokens of shape [B, Hkv, D]; None where the kernels do not take a codec."""
        batch, heads, dim = shape
        pair = (
            CpuCodec.of(codec, tokens=block, heads=heads, dim=dim, role=role)
            for codec, role in zip(codecs, Role, strict=True)
        )
        key_codec, value_codec = pair
        if key_codec is None or value_codec is None:
            return None
        return cls(segment_sizes(slots, codecs, block), batch, key_codec, value_codec)

    def write(self, number: int, tokens: CpuTokens) -> None:
        """Encode blocks [B, Hkv, N * M, D] and put them at numbers number .. number + N."""
        block = self._codecs[0].tokens
        for run in runs(number, tokens.length // block, self._slots):
            new = tokens.cut(run.done * block, (run.done + run.stop - run.at) * block)
            for into, codec, each in zip(self._opened(run), self._codecs, new, strict=True):
                codec.encode(each, into)

    def put(self, number: int, keys: Encoded, values: Encoded) -> None:
        """Put encoded blocks, parts [N, B, Hkv, ...], at numbers number .. number + N."""
        records = [
            codec.from_parts(encoded.parts)
            for codec, encoded in zip(self._codecs, (keys, values), strict=True)
        ]
        for run in runs(number, len(records[0]), self._slots):
            some = slice(run.done, run.done + run.stop - run.at)
            for into, new in zip(self._opened(run), records, strict=True):
                into[...] = new[some]

    def read(self, first: int, end: int) -> tuple[Parts, Parts]:
        """The blocks [first, end) as parts [n, B, Hkv, ...], copied."""
        found = self._records(first, end)
        keys, values = (codec.to_parts(x) for codec, x in zip(self._codecs, found, strict=True))
        return keys, values

    def decoded(self, first: int, end: int) -> Tokens[Floats]:
        """The tokens [B, Hkv, N * M, D] of the blocks [first, end)."""
        found = self._records(first, end)
        return Tokens(*(codec.decode(x) for codec, x in zip(self._codecs, found, strict=True)))

    def reserve(self, first: int, end: int) -> None:
        """Make room for the blocks [first, end)."""
        for run in runs(first, end - first, self._slots):
            self._opened(run)

    def fill_in(self, memory: structs.TierMemory) -> None:
        """Put the codecs and the addresses of all slots, which stay where they are."""
        keys, values = self._codecs
        memory.key_form, memory.value_form = addressof(keys.form), addressof(values.form)
        memory.keys, memory.values = (address(row) for row in self._addresses)

    def places(self) -> list[int]:
        """Where each block that was ever written lies: those that are shared at one place."""
        found: list[int] = self._addresses[0, : min(self._end, sum(self._slots))].tolist()
        return found

    @property
    def allocated(self) -> int:
        """Blocks that there is memory for now."""
        return sum(self._slots[: len(self._segments)])

    def _records(self, first: int, end: int) -> list[Bytes]:
        """Of the keys and of the values of blocks [first, end), copied."""
        found = list(runs(first, end - first, self._slots))
        return [
            np.concatenate([self._segments[r.segment].read(role, r.at, r.stop) for r in found])
            for role in range(len(self._codecs))
        ]

    def _opened(self, run: Run) -> list[Bytes]:
        """The memory of a segment, in which the slots of a run are to be written."""
        while len(self._segments) <= run.segment:
            slots = self._slots[len(self._segments)]
            for codec in self._codecs:
                codec.ready()
            shapes = [(self._batch, codec.heads, codec.record_bytes) for codec in self._codecs]
            self._segments.append(_Segment.of(slots, shapes))
            self._open(len(self._segments) - 1, 0, slots)
        self._end = max(self._end, sum(self._slots[: run.segment]) + run.stop)
        return self._open(run.segment, run.at, run.stop)

    def _open(self, segment: int, at: int, stop: int) -> list[Bytes]:
        memory, first = self._segments[segment].opened(at, stop), sum(self._slots[:segment])
        for role, records in enumerate(memory):
            starts = address(records) + np.arange(stop - at) * records.strides[0]
            for again in (first, first + sum(self._slots)):
                self._addresses[role, again + at : again + stop] = starts
        return memory
