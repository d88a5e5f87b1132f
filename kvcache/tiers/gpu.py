"""A layer's tiers in MLX arrays, attended by the GPU kernels.

A mask other than the causal one, which only a caller of the library gives, is
attended in plain MLX operations. So is everything where no kernel reads the codecs
or the head dimension: `resolve` does not choose this class then, and a cache
without a model, which learns the dimension late, says so in its stats.
"""

import mlx.core as mx

from kvcache.gpu import TierDecoder, TierPrefill
from kvcache.gpu.decode import MOST_NEW
from kvcache.gpu.families import why_unread
from kvcache.sight import Sight
from kvcache.snapshot import Snapshot
from kvcache.tiers.mlx import MlxTiers
from kvcache.tiers.plan import LayerPlan


class GpuTiers(MlxTiers):
    """`MlxTiers` whose attention is the kernels'.

    decoder, prefill: for few and for many new tokens; others for tests.
    """

    def __init__(
        self,
        plan: LayerPlan,
        *,
        decoder: TierDecoder | None = None,
        prefill: TierPrefill | None = None,
    ) -> None:
        super().__init__(plan)
        self._decoder, self._prefill = decoder or TierDecoder(), prefill or TierPrefill()
        self._codecs = self._cold.codecs if plan.sizes.slots else ()

    def is_reference(self, dim: int) -> bool:
        return why_unread(self._codecs, dim) is not None

    def attend_snapshot(self, q: mx.array, held: Snapshot, sight: Sight, scale: float) -> mx.array:
        if not sight.suits_kernels or self.is_reference(q.shape[3]):
            return super().attend_snapshot(q, held, sight, scale)
        if q.shape[2] <= MOST_NEW:
            return self._decoder.attend(q, sight.turned(q), held, sight, scale=scale)
        return self._prefill.attend(q, held, sight, scale=scale)
