"""A layer's tiers in MLX arrays, encoded and attended by the GPU kernels.

A mask other than the causal one, which only a caller of the library gives, is
attended in plain MLX operations. So is everything where no kernel reads the codecs
or the head dimension: `resolve` does not choose this class then, and a cache
without a model, which learns the dimension late, says so in its stats.
"""

import mlx.core as mx

from kvcache.codecs.feedback import LayerMetric
from kvcache.gpu import TierDecoder, TierEncoder, TierPrefill
from kvcache.gpu.decode import MOST_NEW
from kvcache.gpu.encode import Leaving, encodes
from kvcache.gpu.families import why_unread
from kvcache.sight import Sight
from kvcache.snapshot import Snapshot, Tokens
from kvcache.tiers.mlx import MlxTiers
from kvcache.tiers.plan import LayerPlan


class GpuTiers(MlxTiers):
    """`MlxTiers` whose attention and encoding are the kernels'.

    decoder, prefill: for few and for many new tokens. encoder: for blocks. Others for tests.
    """

    def __init__(
        self,
        plan: LayerPlan,
        metric: LayerMetric | None = None,
        *,
        decoder: TierDecoder | None = None,
        prefill: TierPrefill | None = None,
        encoder: TierEncoder | None = None,
    ) -> None:
        super().__init__(plan, metric)
        self._decoder, self._prefill = decoder or TierDecoder(), prefill or TierPrefill()
        self._encoder = encoder or TierEncoder()
        self._codecs = self._cold.held.codecs if plan.sizes.slots else ()
        self._is_reference: dict[int, bool] = {}  # asked for each token

    def is_reference(self, dim: int) -> bool:
        if dim not in self._is_reference:
            self._is_reference[dim] = why_unread(self._codecs, dim) is not None
        return self._is_reference[dim]

    def write_leaving(self, first: int, end: int, fresh: Tokens[mx.array], number: int) -> None:
        start, stop = first * self.sizes.block, end * self.sizes.block
        leaving = Leaving(
            blocks=end - first,
            block=self.sizes.block,
            new=fresh if stop > number else None,
            number=start,
            ring=self._hot.tokens if start < number else None,
            capacity=self.sizes.hot_memory,
            end=number,
        )
        if not self._encode(first, leaving, fresh.keys.shape[3]):
            super().write_leaving(first, end, fresh, number)

    def write_cold(self, number: int, tokens: Tokens[mx.array]) -> None:
        block = self.sizes.block
        whole = Leaving(blocks=tokens.length // block, block=block, new=tokens)
        if not self._encode(number, whole, tokens.keys.shape[3]):
            super().write_cold(number, tokens)

    def _encode(self, number: int, tokens: Leaving, dim: int) -> bool:
        """Whether the kernel encodes these blocks, to be put from a block number on."""
        codecs = self._cold.held.codecs
        taken = not self.is_reference(dim) and encodes(codecs, self.sizes.block, dim)
        if taken:
            self._cold.put(number, *self._encoder.encode(codecs, tokens))
        return taken

    def attend_snapshot(self, q: mx.array, held: Snapshot, sight: Sight, scale: float) -> mx.array:
        if not sight.suits_kernels or self.is_reference(q.shape[3]):
            return super().attend_snapshot(q, held, sight, scale)
        if q.shape[2] <= MOST_NEW:
            return self._decoder.attend(q, held, sight, scale=scale)
        return self._prefill.attend(q, held, sight, scale=scale)
