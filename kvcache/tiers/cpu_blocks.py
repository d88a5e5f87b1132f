"""Encoded blocks in CPU memory, as the kernels write and read them.

Block number b lies in slot b mod slots of a few segments, as in `cold_ring`.
"""

from collections.abc import Sequence
from ctypes import addressof

import numpy as np

from kvcache.codecs.base import Codec, Encoded, Parts
from kvcache.cpu_memory import zeros
from kvcache.native import structs
from kvcache.native.codec import CpuCodec, Role
from kvcache.native.structs import Bytes, Floats, address
from kvcache.snapshot import Tokens, runs
from kvcache.tiers.cold_ring import segment_sizes
from kvcache.tiers.cpu_ring import CpuTokens


class CpuBlocks:
    """Blocks of keys and values as records, for `batch` rows. Make one by `of`."""

    def __init__(
        self, segments: Sequence[int], batch: int, keys: CpuCodec, values: CpuCodec
    ) -> None:
        self._slots, slots = segments, sum(segments)
        self._batch = batch
        self._codecs = keys, values
        self._segments: list[tuple[Bytes, Bytes]] = []  # each [slots, B, Hkv, record bytes]
        # Where each slot's records begin, twice over, so that no range of slots wraps.
        self._addresses = zeros((2, 2 * slots), np.int64)

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
            self._reserve(run.segment)
            new = tokens.cut(run.done * block, (run.done + run.stop - run.at) * block)
            for into, codec, each in zip(
                self._segments[run.segment], self._codecs, new, strict=True
            ):
                codec.encode(each, into[run.at : run.stop])

    def put(self, number: int, keys: Encoded, values: Encoded) -> None:
        """Put encoded blocks, parts [N, B, Hkv, ...], at numbers number .. number + N."""
        records = [
            codec.from_parts(encoded.parts)
            for codec, encoded in zip(self._codecs, (keys, values), strict=True)
        ]
        for run in runs(number, len(records[0]), self._slots):
            self._reserve(run.segment)
            some = slice(run.done, run.done + run.stop - run.at)
            for into, new in zip(self._segments[run.segment], records, strict=True):
                into[run.at : run.stop] = new[some]

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
            self._reserve(run.segment)

    def fill_in(self, memory: structs.TierMemory) -> None:
        """Put the codecs and the addresses of all slots, which stay where they are."""
        keys, values = self._codecs
        memory.key_form, memory.value_form = addressof(keys.form), addressof(values.form)
        memory.keys, memory.values = (address(row) for row in self._addresses)

    @property
    def allocated(self) -> int:
        """Blocks that there is memory for now."""
        return sum(self._slots[: len(self._segments)])

    def _records(self, first: int, end: int) -> list[Bytes]:
        """Of the keys and of the values of blocks [first, end), copied."""
        found = list(runs(first, end - first, self._slots))
        return [
            np.concatenate([self._segments[r.segment][role][r.at : r.stop] for r in found])
            for role in range(len(self._codecs))
        ]

    def _reserve(self, segment: int) -> None:
        while len(self._segments) <= segment:
            slots = self._slots[len(self._segments)]
            first = self.allocated
            for codec in self._codecs:
                codec.ready()
            keys, values = (
                zeros((slots, self._batch, codec.heads, codec.record_bytes), np.uint8)
                for codec in self._codecs
            )
            self._segments.append((keys, values))
            for role, records in enumerate((keys, values)):
                starts = address(records) + np.arange(slots) * records.strides[0]
                for again in (0, sum(self._slots)):
                    self._addresses[role, again + first : again + first + slots] = starts
