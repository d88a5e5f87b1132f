"""Attention over the tiers of one layer by the CPU kernels: pieces, blocks, one softmax.

A piece is unencoded tokens of consecutive positions, a block encoded ones. This
module does not know which tier a piece is, nor when tokens move between tiers.
"""

from collections.abc import Sequence
from ctypes import addressof
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from kvcache.errors import CacheError
from kvcache.native import structs
from kvcache.native.codec import CpuCodec, Role
from kvcache.native.library import Library, library
from kvcache.native.structs import Array, Bytes, Floats, address, checked, strided

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class UnencodedPiece:
    """Unencoded tokens of consecutive positions, read in place.

    keys, values: [B, Hkv, at least `count`, D] of float16, uint16 (bfloat16's
    bits) or float32, strided as they like but for a contiguous last axis.
    position: of the first token. pinned: seen by every query, through q_sink.
    """

    keys: Array
    values: Array
    count: int
    position: int
    pinned: bool = False

    def __post_init__(self) -> None:
        shapes = self.keys.shape, self.values.shape
        if shapes[0] != shapes[1] or not 0 <= self.count <= shapes[0][2]:
            raise CacheError(
                f"got {self.count} tokens in keys {shapes[0]} and values {shapes[1]}, "
                "expected two equal [B, Hkv, tokens, D] that hold as many"
            )

    @property
    def struct(self) -> structs.Piece:
        """As the kernels take it."""
        keys, values = strided(self.keys), strided(self.values)
        return structs.Piece(keys, values, self.count, self.position, self.pinned)


@dataclass(frozen=True, kw_only=True)
class ColdBlocks:
    """Encoded blocks of consecutive positions.

    segments: records of keys and of values, each uint8 [S, B, Hkv, record_bytes].
    order: int64 [n, 2], the (segment, slot) of each block, oldest first.
    position: of the first block's first token.
    """

    key_codec: CpuCodec
    value_codec: CpuCodec
    segments: Sequence[tuple[Bytes, Bytes]]
    order: Integers
    position: int

    def __post_init__(self) -> None:
        keys, values = self.key_codec, self.value_codec
        if (keys.tokens, keys.heads, keys.dim) != (values.tokens, values.heads, values.dim):
            raise CacheError(
                f"got key blocks of {keys.tokens} tokens, {keys.heads} heads, {keys.dim} "
                f"dimensions and value blocks of {values.tokens}, {values.heads}, {values.dim}"
            )
        if (keys.role, values.role) != (Role.KEYS, Role.VALUES):
            raise CacheError(f"got codecs of {keys.role} and {values.role}, expected keys, values")
        for pair in self.segments:
            outer = pair[0].shape[:2]
            for codec, records in zip((keys, values), pair, strict=True):
                shape = (*outer, codec.heads, codec.record_bytes)
                checked("records", records, np.uint8, shape)
        checked("order", self.order, np.int64, (None, 2))
        slots = np.array([len(pair[0]) for pair in self.segments], np.int64)
        segment, slot = self.order[:, 0], self.order[:, 1]
        known = (segment >= 0) & (segment < len(slots))
        if not known.all() or not ((slot >= 0) & (slot < slots[segment])).all():
            raise CacheError(f"got blocks {self.order.tolist()}, but segments of {slots} slots")

    @property
    def batch(self) -> int | None:
        """B; None where there is no segment."""
        return self.segments[0][0].shape[1] if self.segments else None

    @cached_property
    def struct(self) -> structs.Blocks:
        """As the kernels take it; holds while the segments stay where they are."""
        keys, values = self._addresses
        return structs.Blocks(
            addressof(self.key_codec.form),
            addressof(self.value_codec.form),
            address(keys),
            address(values),
            len(self.order),
            self.position,
        )

    @cached_property
    def _addresses(self) -> tuple[Integers, Integers]:
        """Where the records of each block begin."""
        return self._of_role(0), self._of_role(1)

    def _of_role(self, role: int) -> Integers:
        starts = np.array([address(pair[role]) for pair in self.segments], np.int64)
        strides = np.array([pair[role].strides[0] for pair in self.segments], np.int64)
        segment, slot = self.order[:, 0], self.order[:, 1]
        return np.ascontiguousarray(starts[segment] + slot * strides[segment])


def attend_tiers(
    q: Floats,
    q_sink: Floats | None,
    pieces: Sequence[UnencodedPiece],
    cold: ColdBlocks | None,
    *,
    lowest: Integers,
    position: int,
    scale: float,
    kernels: Library | None = None,
) -> Floats:
    """Attend q [B, Hq, L, D] to pieces and blocks under one softmax; float32 [B, Hq, L, D].

    Query i stands at `position` + i and sees every token from lowest[i] up to
    itself, and all that is pinned; lowest is int64 [L], or [B, L].
    q_sink: the queries as pinned tokens meet them; None: the same.
    Raises CacheError for shapes that do not fit each other.
    """
    checked("q", q, np.float32, (None, None, None, None))
    batch, heads, queries, dim = q.shape
    given: list[tuple[int | None, ...]] = [piece.keys.shape for piece in pieces]
    if cold is not None and len(cold.order):
        given.append((cold.batch, cold.key_codec.heads, cold.key_codec.tokens, cold.key_codec.dim))
    kv_heads = (given[0][1] or 0) if given else 0
    fits = all((s[0], s[1], s[3]) == (batch, kv_heads, dim) for s in given)
    if not given or not fits or heads % kv_heads:
        raise CacheError(f"got queries {q.shape} over keys {', '.join(map(str, given)) or 'none'}")
    if lowest.dtype != np.int64 or lowest.shape not in ((queries,), (batch, queries)):
        raise CacheError(
            f"got lowest {lowest.dtype} {lowest.shape}, expected int64 ({queries},) or "
            f"({batch}, {queries})"
        )
    return (kernels or library()).attend_pieces(
        q,
        q if q_sink is None else q_sink,
        [piece.struct for piece in pieces],
        structs.Blocks() if cold is None else cold.struct,
        kv_heads,
        lowest,
        position,
        scale,
    )
