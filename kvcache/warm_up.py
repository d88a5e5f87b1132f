"""Runs the GPU kernels of a plan once, before the first prompt needs them: compiled, and right.

MLX compiles a kernel at its first use, which would be inside the first answer; and
the text may meet a GPU, a driver or an MLX that nobody has tried it on. So a small
cache is attended in each way that a chat attends, beside one in plain MLX. Knows no
kernel and no model.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import mlx.core as mx
import numpy as np

from kvcache.config import Backend
from kvcache.gpu.decode import MOST_NEW
from kvcache.tiers.ledger import TierSizes
from kvcache.tiers.plan import CachePlan
from kvcache.two_tier import TwoTierKVCache

# Of the largest output: far above what float16 rounds off, far below a misread token.
_MOST_ERROR = 0.05


def warm_up(plan: CachePlan, *, group: int, dtype: mx.Dtype) -> CachePlan:
    """The plan, its GPU kernels compiled and compared with plain MLX; at once without a GPU.

    group: query heads of each KV head. dtype: of queries. Some seconds, for answers
    token by token and for prompts; two to eight new tokens at once may still
    compile kernels of their own. Where the kernels do not run or give something
    else, the automatic backend becomes plain MLX and the plan says why. Raises
    CacheError for the gpu backend then.
    """
    if plan.backend is not Backend.GPU:
        return plan
    try:
        error = float(np.max([*_errors(plan, group, dtype)]))  # NaN if one is
    except RuntimeError as problem:  # MLX's, for what the GPU's compiler or driver refuses
        said = str(problem).strip().partition("\n")[0]
        return plan.in_plain_mlx(f"the GPU kernels do not run here: {said}; {_REPORT}")
    if not error <= _MOST_ERROR:
        return plan.in_plain_mlx(
            f"the GPU kernels differ from plain MLX by {error:.2g} of the largest output here, "
            f"expected at most {_MOST_ERROR}; {_REPORT}"
        )
    return plan


_REPORT = "run `make metal-check` and report its table, and use --backend reference until then"


def _errors(plan: CachePlan, group: int, dtype: mx.Dtype) -> Iterator[float]:
    """Of prompts and of single tokens, before there is a cold block and after."""
    layer = plan.layer(0)
    ours, reference = (
        TwoTierKVCache(replace(layer, backend=backend))
        for backend in (Backend.GPU, Backend.REFERENCE)
    )
    prompt, shape = MOST_NEW + 1, plan.shape
    scale, seeds = shape.head_dim**-0.5, count()

    def drawn(heads: int, length: int) -> mx.array:
        size = 1, heads, length, shape.head_dim
        return mx.random.normal(size, key=mx.random.key(next(seeds))).astype(dtype)

    for length, filled in ((prompt, 0), (1, 0), (1, _until_cold(plan.sizes)), (prompt, 0)):
        if filled:
            tokens = drawn(shape.kv_heads, filled), drawn(shape.kv_heads, filled)
            for cache in (ours, reference):
                cache.append(*tokens)
        q, k, v = (drawn(n, length) for n in (shape.kv_heads * group, *[shape.kv_heads] * 2))
        got, right = (
            cache.attend(q, k, v, scale=scale).astype(mx.float32) for cache in (ours, reference)
        )
        yield float(mx.abs(got - right).max() / mx.abs(right).max())


def _until_cold(sizes: TierSizes) -> int:
    """Tokens after which there are cold blocks, if there is room for any."""
    return sizes.pinned + sizes.ring + sizes.block
