"""What a caller hands over of one layer: whole buffers plus lengths, nothing sliced or copied."""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from kvcache.codecs.base import Codec, Parts


@dataclass(frozen=True, kw_only=True)
class DenseTokens:
    """The first `count` tokens of keys and values [B, Hkv, room, D]; float16 or bfloat16."""

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
    """All that new tokens attend to, themselves included.

    new: keys and values [B, Hkv, L, D]; their number is the queries'.
    Without pinned, hot or cold tokens that tier is None.
    """

    new: DenseTokens
    pinned: DenseTokens | None = None
    hot: HotRing | None = None
    cold: ColdBlocks | None = None
