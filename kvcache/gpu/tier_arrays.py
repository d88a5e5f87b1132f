"""What a caller hands over of one layer: whole buffers plus lengths, nothing sliced or copied."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from kvcache.codecs.base import Codec, Parts


@dataclass(frozen=True, kw_only=True)
class DenseTokens:
    """The first `count` tokens of keys and values [B, Hkv, room, D]."""

    keys: mx.array
    values: mx.array
    count: int


@dataclass(frozen=True, kw_only=True)
class HotRing:
    """`count` tokens from ring index `start`, wrapping, of keys and values [B, Hkv, ring, D].

    position: absolute position of the first of them.
    """

    keys: mx.array
    values: mx.array
    start: int
    count: int
    position: int


@dataclass(frozen=True, kw_only=True)
class ColdBlocks:
    """`blocks` encoded blocks of `block` tokens of `dim` channels.

    Number i, the oldest being 0, lies in slot (first_slot + i) mod slots.
    segments: up to four pairs of encoded keys and values, each part [slots, B, Hkv, *trailing];
    later ones may be missing while no block lies in them.
    slots: of all segments, allocated or not.
    sizes: slots of each segment that is there.
    position: absolute position of the oldest block's first token.
    """

    key_codec: Codec
    value_codec: Codec
    segments: Sequence[tuple[Parts, Parts]]
    first_slot: int
    blocks: int
    block: int
    dim: int
    slots: int
    position: int

    @property
    def sizes(self) -> list[int]:
        """Slots of each segment."""
        return [next(iter(keys.values())).shape[0] for keys, _ in self.segments]


@dataclass(frozen=True, kw_only=True)
class TierArrays:
    """All that queries attend to. A tier that holds nothing is None; not all of them may be.

    Unencoded tokens are float16, bfloat16 or float32, the same in every tier.
    pinned: at positions from 0.
    new: tokens that are in no tier yet, just after the hot ones.
    new_position: of the first of them; None is that of the first query.
    """

    pinned: DenseTokens | None = None
    cold: ColdBlocks | None = None
    hot: HotRing | None = None
    new: DenseTokens | None = None
    new_position: int | None = None

    @property
    def kv_heads(self) -> int:
        """Hkv."""
        dense = next((tier for tier in (self.new, self.hot, self.pinned) if tier), None)
        if dense:
            return dense.keys.shape[1]
        assert self.cold, "attention to nothing"
        return next(iter(self.cold.segments[0][0].values())).shape[2]
