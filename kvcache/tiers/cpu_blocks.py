"""Encoded blocks in plain memory, as the CPU kernels write and read them.

Block number b lies in slot b mod slots of a few segments, as in `cold_ring`.
"""

from ctypes import addressof

import numpy as np

from kvcache.codecs.base import Codec, Encoded
from kvcache.cpu_memory import zeros
from kvcache.native import structs
from kvcache.native.codec import HostCodec, Role
from kvcache.native.structs import Bytes, address
from kvcache.tiers.cold_ring import ColdView, SlotMap
from kvcache.tiers.cpu_ring import HostTokens


class HostColdRing:
    """Blocks of keys and values as records, for `batch` rows. Make one by `of`."""

    def __init__(self, slots: int, batch: int, keys: HostCodec, values: HostCodec) -> None:
        self._slot_map = SlotMap(slots)
        self._batch = batch
        self._codecs = keys, values
        self._segments: list[tuple[Bytes, Bytes]] = []  # each [slots, B, Hkv, record bytes]
        # Where each slot's records begin, twice over, so that no range of slots wraps.
        self._addresses = zeros((2, 2 * slots), np.int64)

    @classmethod
    def of(
        cls, slots: int, *, block: int, shape: tuple[int, int, int], keys: Codec, values: Codec
    ) -> "HostColdRing | None":
        """A ring for tokens of shape [B, Hkv, D]; None where the kernels do not take a codec."""
        batch, heads, dim = shape
        pair = (
            HostCodec.of(codec, tokens=block, heads=heads, dim=dim, role=role)
            for codec, role in ((keys, Role.KEYS), (values, Role.VALUES))
        )
        key_codec, value_codec = pair
        if key_codec is None or value_codec is None:
            return None
        return cls(slots, batch, key_codec, value_codec)

    def write(self, number: int, tokens: HostTokens) -> None:
        """Encode blocks [B, Hkv, N * M, D] and put them at numbers number .. number + N."""
        block, done = self._codecs[0].tokens, 0
        for run in self._slot_map.runs(number, number + tokens.length // block):
            self._reserve(run.segment)
            end = done + (run.end - run.at) * block
            for into, codec, new in zip(
                self._segments[run.segment], self._codecs, tokens.cut(done, end), strict=True
            ):
                codec.encode(new, into[run.at : run.end])
            done = end

    def put(self, number: int, keys: Encoded, values: Encoded) -> None:
        """Put encoded blocks, parts [N, B, Hkv, ...], at numbers number .. number + N."""
        records = [
            codec.from_parts(encoded.parts)
            for codec, encoded in zip(self._codecs, (keys, values), strict=True)
        ]
        done = 0
        for run in self._slot_map.runs(number, number + len(records[0])):
            self._reserve(run.segment)
            count = run.end - run.at
            for into, new in zip(self._segments[run.segment], records, strict=True):
                into[run.at : run.end] = new[done : done + count]
            done += count

    def view(self, first: int, end: int) -> ColdView:
        """The blocks [first, end) as MLX arrays, copied."""
        runs = []
        for run in self._slot_map.runs(first, end):
            keys, values = (
                Encoded(parts=codec.to_parts(records[run.at : run.end]), dim=codec.dim)
                for codec, records in zip(self._codecs, self._segments[run.segment], strict=True)
            )
            runs.append((keys, values))
        key_codec, value_codec = self._codecs
        return ColdView(key_codec.codec, value_codec.codec, runs)

    def struct(self, first: int, end: int, position: int) -> structs.Blocks:
        """The blocks [first, end), whose first token stands at `position`, for the kernels."""
        keys, values = self._codecs
        at = first % self._slot_map.slots * self._addresses.itemsize
        return structs.Blocks(
            addressof(keys.form),
            addressof(values.form),
            address(self._addresses[0]) + at,
            address(self._addresses[1]) + at,
            end - first,
            position,
        )

    def reserve(self, first: int, end: int) -> None:
        """Make room for the blocks [first, end)."""
        for run in self._slot_map.runs(first, end):
            self._reserve(run.segment)

    def fill_in(self, memory: structs.TierMemory) -> None:
        """Put the codecs and the addresses of all slots, which stay where they are."""
        keys, values = self._codecs
        memory.key_form, memory.value_form = addressof(keys.form), addressof(values.form)
        memory.keys, memory.values = (address(row) for row in self._addresses)

    @property
    def allocated(self) -> int:
        """Blocks that there is memory for now."""
        return sum(self._slot_map.segments[: len(self._segments)])

    def _reserve(self, segment: int) -> None:
        while len(self._segments) <= segment:
            slots = self._slot_map.segments[len(self._segments)]
            first = self.allocated
            keys, values = (
                zeros((slots, self._batch, codec.heads, codec.record_bytes), np.uint8)
                for codec in self._codecs
            )
            self._segments.append((keys, values))
            for role, records in enumerate((keys, values)):
                starts = address(records) + np.arange(slots) * records.strides[0]
                for turn in (0, self._slot_map.slots):
                    self._addresses[role, turn + first : turn + first + slots] = starts
