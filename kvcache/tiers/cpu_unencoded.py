"""Cold blocks that are not encoded: tokens side by side in CPU memory."""

from copy import copy

import mlx.core as mx

from kvcache.codecs.base import Encoded, Parts
from kvcache.config import HotDtype
from kvcache.snapshot import Tokens, side_by_side
from kvcache.tiers.cpu_ring import CpuRing, CpuTokens, from_mlx, to_mlx

_PART = "values"


class CpuUnencodedBlocks:
    """The cold tier of `f16`: as many slots as planned, in the hot dtype."""

    def __init__(
        self, slots: int, *, block: int, shape: tuple[int, int, int], dtype: HotDtype
    ) -> None:
        self._block, self._dtype = block, dtype
        self.ring = CpuRing(slots * block, shape, dtype)

    def shared(self) -> "CpuUnencodedBlocks":
        """A copy that costs nothing before one of the two writes: then that copies all of it."""
        made = copy(self)
        made.ring = self.ring.shared()
        return made

    @property
    def allocated(self) -> int:
        """Blocks that the system has given memory for."""
        return self.ring.allocated // self._block

    def reserve(self, first: int, end: int) -> None:
        """Blocks [first, end) are written by a kernel."""
        self.ring.reserve(first * self._block, end * self._block)

    def write(self, number: int, tokens: CpuTokens) -> None:
        """Put whole blocks from a block number."""
        self.ring.write(number * self._block, tokens)

    def put(self, number: int, keys: Encoded, values: Encoded) -> None:
        """Put blocks as `UnencodedCodec` has them, [N, B, Hkv, M, D]."""
        tokens = Tokens(side_by_side(keys.parts[_PART]), side_by_side(values.parts[_PART]))
        self.write(number, from_mlx(tokens, self._dtype))

    def read(self, first: int, end: int) -> tuple[Parts, Parts]:
        """The blocks [first, end) as parts [n, B, Hkv, M, D], copied."""
        tokens = self.ring.read(first * self._block, (end - first) * self._block)
        keys, values = (self._blocks(array) for array in to_mlx(tokens, self._dtype))
        return keys, values

    def _blocks(self, tokens: mx.array) -> Parts:
        """[B, Hkv, N * M, D] -> [N, B, Hkv, M, D]."""
        return {_PART: mx.moveaxis(mx.unflatten(tokens, 2, (-1, self._block)), 2, 0)}
