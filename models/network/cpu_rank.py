"""The network of one of several ranks by the CPU kernels' products: layers meet the other ranks.

Calls over all layers at once (`cpu_llama`) know no others.
"""

from collections.abc import Callable, Sequence
from functools import partial

import mlx.core as mx

from kvcache.attention import AttendingCache
from models.native.kernels import Kernels
from models.network.config import NetworkConfig
from models.network.cpu_llama import CpuInputs
from models.network.llama import Block, Model
from models.network.switches import NormOf
from models.network.weights import Weights


class CpuRank(Model):
    """`Model` over weights that are held in place. check: as for `CpuModel`.

    Up to attention a layer is one call, unless ranks norm their heads together.
    """

    def __init__(
        self,
        config: NetworkConfig,
        weights: Weights,
        kernels: Kernels,
        check: Callable[[], None],
    ) -> None:
        meet = config.switches.query_key_norm is NormOf.ROW
        super().__init__(config, weights, Block if meet else partial(CpuInputs, kernels=kernels))
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
