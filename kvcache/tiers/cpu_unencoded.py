"""Cold blocks that are not encoded: tokens side by side in plain memory."""

from collections.abc import Iterator

import mlx.core as mx

from kvcache.codecs.base import Encoded
from kvcache.codecs.plain import PlainCodec
from kvcache.config import HotDtype
from kvcache.native import structs
from kvcache.tiers.cold_ring import ColdView, side_by_side
from kvcache.tiers.cpu_ring import HostRing, HostTokens

_PART = "values"


class HostPlainRing:
    """The cold tier of `f16`: as many slots as planned, in the hot dtype."""

    def __init__(
        self,
        slots: int,
        *,
        block: int,
        shape: tuple[int, int, int],
        codec: PlainCodec,
        dtype: HotDtype,
    ) -> None:
        self._block, self._codec, self._dtype = block, codec, dtype
        self._ring = HostRing(slots * block, shape, dtype)
        self.allocated = slots

    def write(self, number: int, tokens: HostTokens) -> None:
        """Put whole blocks from a block number."""
        self._ring.write(number * self._block, tokens)

    def put(self, number: int, keys: Encoded, values: Encoded) -> None:
        """Put blocks as `PlainCodec` has them, [N, B, Hkv, M, D]."""
        k, v = (side_by_side(encoded.parts[_PART]) for encoded in (keys, values))
        self.write(number, HostTokens.of(k, v, self._dtype))

    def pieces(self, first: int, end: int) -> Iterator[tuple[int, HostTokens]]:
        """(index of its first token, tokens) of each run of the blocks [first, end), in place."""
        return self._ring.pieces(first * self._block, (end - first) * self._block)

    @property
    def ring(self) -> structs.Ring:
        """As the kernels take it."""
        return self._ring.struct

    def view(self, first: int, end: int) -> ColdView:
        """The blocks [first, end) as MLX arrays, copied."""
        tokens = self._ring.read(first * self._block, (end - first) * self._block)
        keys, values = (self._encoded(array) for array in tokens.as_arrays(self._dtype))
        return ColdView(self._codec, self._codec, [(keys, values)])

    def _encoded(self, tokens: mx.array) -> Encoded:
        """[B, Hkv, N * M, D] -> parts [N, B, Hkv, M, D]."""
        blocks = mx.unflatten(tokens, 2, (-1, self._block))
        return Encoded(parts={_PART: mx.moveaxis(blocks, 2, 0)}, dim=tokens.shape[-1])
