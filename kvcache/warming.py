"""Runs the GPU kernels of a plan once, before the first prompt needs them: compiled, and right.

MLX compiles a kernel at its first use, which would be inside the first answer; and
the text may meet a GPU, a driver or an MLX that nobody has tried it on. So a small
cache is attended in each way that a chat attends, beside one in plain MLX. Knows no
kernel and no model.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count

import mlx.core as mx
import numpy as np

from kvcache.config import Backend
from kvcache.given import instance, integer, optional
from kvcache.gpu.decode import MOST_NEW
from kvcache.key_metric import KeyMetric
from kvcache.prompt_cache import Rotations, each_layer
from kvcache.tiers.ledger import TierSizes
from kvcache.tiers.plan import CachePlan, ModelShape
from kvcache.two_tier import TwoTierKVCache

# Of the largest output: far above what float16 rounds off, far below a misread token.
_MOST_ERROR = 0.05

OnProgress = Callable[[int, int], None]


def warm_up(
    plan: CachePlan,
    *,
    group: int,
    dtype: mx.Dtype,
    rotation: Rotations = None,
    metric: KeyMetric | None = None,
    progress: OnProgress | None = None,
) -> CachePlan:
    """The plan, its GPU kernels compiled and compared with plain MLX; at once without a GPU.

    group: query heads of each KV head. dtype: of queries. rotation: the model's, or each
    layer's, as its caches have it; metric: of its queries, likewise. progress: called with
    (steps done, all steps); what it raises ends the work. Some seconds, most of them the GPU's
    compiler's: prompts and every number of new tokens that decoding takes, before and after
    tokens are encoded and let go, in each kind of layer.

    Where the kernels do not run or give something else, the automatic backend becomes
    plain MLX and the plan says why. Raises CacheError for the gpu backend then.
    """
    instance("plan", plan, CachePlan)
    integer("group", group, least=1)
    instance("dtype", dtype, mx.Dtype)
    each_layer(rotation, plan.shape.layers)
    optional("metric", metric, KeyMetric)
    if plan.backend is not Backend.GPU:
        return plan
    report = progress or _ignore
    trials = _trials(plan, rotation, metric)
    whole = sum(len(steps) for steps, _ in trials)
    errors = []
    report(0, whole)
    try:
        for steps, caches in trials:
            for error in _errors(steps, caches, plan.shape, group, dtype):
                errors.append(error)
                report(len(errors), whole)
    except (RuntimeError, ValueError) as problem:  # MLX's two: see `_said`
        return plan.on_reference(f"the GPU kernels do not run here: {_said(problem)}; {_REPORT}")
    worst = float(np.max(errors))  # NaN if one is
    if not worst <= _MOST_ERROR:
        return plan.on_reference(
            f"the GPU kernels differ from plain MLX by {worst:.2g} of the largest output here, "
            f"expected at most {_MOST_ERROR}; {_REPORT}"
        )
    return plan


_REPORT = "run `make metal-check` and report its table, and use `backend` reference until then"


@dataclass(frozen=True, kw_only=True)
class _Step:
    """So many tokens are appended, then `new` ones attend."""

    append: int = 0
    new: int


_Trial = tuple[list[_Step], list[TwoTierKVCache]]


def _trials(plan: CachePlan, rotation: Rotations, metric: KeyMetric | None) -> list[_Trial]:
    """For each kind of layer: the steps, and a cache of each backend that takes them."""
    ropes, trials = each_layer(rotation, plan.shape.layers), []
    kinds = [(sizes, plan.config.codecs_of(at)) for at, sizes in enumerate(plan.layer_sizes)]
    for index in map(kinds.index, dict.fromkeys(kinds)):
        layer, sizes = plan.layer(index), _small(plan.layer_sizes[index])
        caches = [
            TwoTierKVCache(
                replace(layer, sizes=sizes, backend=backend),
                rotation=ropes[index],
                metric=None if metric is None else metric.layers[index],
            )
            for backend in (Backend.GPU, Backend.REFERENCE)
        ]
        trials.append((_steps(sizes), caches))
    return trials


def _small(sizes: TierSizes) -> TierSizes:
    """The same tiers with fewer tokens: how many there are is a number that kernels are told."""
    pinned, hot, slots = min(sizes.pinned, 4), min(sizes.hot, 64), min(sizes.slots, 2)
    # A token less than is always held, so that the oldest one is hidden.
    window = None if sizes.window is None else max(1, hot + slots * sizes.block - 1)
    return replace(sizes, pinned=pinned, hot=hot, slots=slots, window=window)


def _steps(sizes: TierSizes) -> list[_Step]:
    """Nothing encoded; a block encoded; tokens let go, which turns the pinned ones."""
    prompt = MOST_NEW + 1
    few = [_Step(new=new) for new in range(1, MOST_NEW + 1)]
    a_block = _Step(append=sizes.pinned + sizes.ring + sizes.block, new=1)
    let_go = _Step(append=(sizes.slots + 1) * sizes.block, new=prompt)
    return [_Step(new=prompt), few[0], a_block, _Step(new=prompt), let_go, *few]


def _errors(
    steps: list[_Step],
    caches: list[TwoTierKVCache],
    shape: ModelShape,
    group: int,
    dtype: mx.Dtype,
) -> Iterator[float]:
    """Of each step: the largest difference of both caches' outputs, by the largest output."""
    seeds = count()

    def drawn(heads: int, length: int) -> mx.array:
        size = 1, heads, length, shape.head_dim
        return mx.random.normal(size, key=mx.random.key(next(seeds))).astype(dtype)

    for step in steps:
        if step.append:
            tokens = [drawn(shape.kv_heads, step.append) for _ in "kv"]
            for cache in caches:
                cache.append(*tokens)
        q, k, v = (drawn(n, step.new) for n in (shape.kv_heads * group, *[shape.kv_heads] * 2))
        scale = shape.head_dim**-0.5
        got, right = (cache.attend(q, k, v, scale=scale).astype(mx.float32) for cache in caches)
        yield float(mx.abs(got - right).max() / mx.abs(right).max())


def _said(problem: Exception) -> str:
    """The first line of MLX's words.

    It raises RuntimeError for what the GPU's compiler or driver refuses, ValueError for
    more threads than a kernel of so many registers can have, or too large a buffer.
    """
    return str(problem).strip().partition("\n")[0]


def _ignore(_done: int, _total: int) -> None:
    """Progress nobody asked for."""
