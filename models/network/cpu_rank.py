"""The network of one of several ranks by the CPU kernels' products: layers meet the other ranks.

Calls over all layers at once (`cpu_llama`) know no others; here each matrix is a call.
"""

from collections.abc import Callable, Sequence

import mlx.core as mx

from kvcache.attention import AttendingCache
from models.network.config import NetworkConfig
from models.network.llama import Model
from models.network.weights import Weights


class CpuRank(Model):
    """`Model` over weights that are held in place. check: as for `CpuModel`."""

    def __init__(self, config: NetworkConfig, weights: Weights, check: Callable[[], None]) -> None:
        super().__init__(config, weights)
        self._check = check

    def through_layers(
        self,
        x: mx.array,
        caches: Sequence[AttendingCache | None],
        stopped: Callable[[], bool] | None = None,
    ) -> mx.array:
        out = super().through_layers(x, caches, stopped)
        self._check()
        return out

    def logits(self, hidden: mx.array) -> mx.array:
        found = super().logits(hidden)
        self._check()
        return found
