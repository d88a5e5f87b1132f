"""Bytes that attention of one call moves between memory and the GPU, by formula.

What is loaded again by neighbours, and so comes from a cache of the GPU, counts once.
`tests/metal/test_bytes.py` holds the formula against what the kernels load and
write. Runs nothing.
"""

from dataclasses import dataclass

from kvcache.codecs.base import Codec
from kvcache.gpu.device import threadgroups_of
from kvcache.gpu.hadamard import words_bytes
from kvcache.gpu.shape import TILE, CallShape, ceil_div

_FLOAT = 4


@dataclass(frozen=True, kw_only=True)
class Held:
    """Tokens of each tier, the new ones among the hot; `blocks` cold ones of `block` tokens."""

    pinned: int
    hot: int
    blocks: int
    block: int


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes of one layer.

    pinned, hot, cold: keys and values, cold ones with all their scales.
    queries: read by the kernel of each tier.
    rotation: the words of both bases.
    scratch: partial results of spans, written and read.
    """

    pinned: int
    hot: int
    cold: int
    queries: int
    rotation: int
    scratch: int
    output: int

    @property
    def cache(self) -> int:
        """Keys and values of all tiers."""
        return self.pinned + self.hot + self.cold

    @property
    def total(self) -> int:
        """All of it."""
        return self.cache + self.queries + self.rotation + self.scratch + self.output


def traffic(
    shape: CallShape,
    held: Held,
    *,
    keys: Codec,
    values: Codec,
    hot_bytes: int = 2,
    query_bytes: int = 2,
    threadgroups: int | None = None,
) -> Traffic:
    """Of `TierDecoder.attend`. hot_bytes, query_bytes: of one unencoded number, of one of q.

    threadgroups: of the decoder; None: as for a base chip.

    Each part of the rows (`CallShape.row_parts`) reads the tiers once. Of cold
    blocks that one launch reads: scratch is more where codecs have many parts.
    """
    reads = shape.heads * shape.row_parts
    token = 2 * shape.dim * hot_bytes
    rows = shape.heads * shape.rows
    units = [ceil_div(held.hot, TILE), ceil_div(held.pinned, TILE), held.blocks]
    wanted = threadgroups or threadgroups_of("g")
    spans = sum(shape.spans(count, wanted) for count in units if count)
    rotated = [codec for codec in (keys, values) if held.blocks and codec.rotation is not None]
    return Traffic(
        pinned=reads * held.pinned * token,
        hot=reads * held.hot * token,
        cold=reads * held.blocks * block_bytes(keys, values, held.block, shape.dim),
        queries=rows * shape.dim * query_bytes * (1 + (held.blocks > 0)),
        rotation=len(rotated) * words_bytes(shape.kv_heads, shape.dim),
        scratch=2 * rows * spans * (shape.dim + 2) * _FLOAT,
        output=rows * shape.dim * query_bytes,
    )


def block_bytes(keys: Codec, values: Codec, block: int, dim: int) -> int:
    """Encoded keys and values of one block of one KV head."""
    specs = (spec for codec in (keys, values) for spec in codec.shapes(block, dim).values())
    return sum(spec.nbytes for spec in specs)
