"""The network of one of several ranks by the CPU kernels' products: layers meet the other ranks.

Calls over all layers at once (`cpu_llama`) know no others.
"""

from collections.abc import Callable
from functools import partial

from models.native.kernels import Kernels
from models.network.config import NetworkConfig
from models.network.cpu_llama import CpuInputs, MappedModel
from models.network.llama import Block
from models.network.switches import NormOf
from models.network.weights import Weights


class CpuRank(MappedModel):
    """A `MappedModel` of one rank's part.

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
        make_block = Block if meet else partial(CpuInputs, kernels=kernels)
        super().__init__(config, weights, make_block, check)
