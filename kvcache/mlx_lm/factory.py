"""The caches of an mlx-lm model, made when a script or mlx-lm itself asks for them."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, TypeAlias

import mlx.nn as nn
import mlx_lm.models.cache as mlx_lm_cache

import kvcache.rows  # noqa: F401  # by which mlx-lm's generators batch what is made here
from kvcache.config import Backend, CacheConfig
from kvcache.given import optional, refused
from kvcache.key_metric import KeyMetric
from kvcache.mlx_lm.model_shape import layout_of
from kvcache.mlx_lm.probe import is_plain, name_of, own_caches
from kvcache.mlx_lm.ropes import rotations_of
from kvcache.tiers.cpu import reads_all
from kvcache.tiers.plan import CachePlan, ModelShape, resolve
from kvcache.two_tier import TwoTierKVCache

# A layer's: ours, or mlx-lm's own kind where ours does not replace it.
AnyCache: TypeAlias = TwoTierKVCache | Any
# Newest tokens that can always be trimmed where nothing else is asked for: drafts are shorter.
_SLACK = 16


def make_prompt_cache(
    model: nn.Module, config: CacheConfig | None = None, *, metric: KeyMetric | None = None
) -> list[AnyCache]:
    """The caches of an mlx-lm model, as many and in the order that it wants.

    Those of layers that keep keys and values are ours, as `config` asks for; others are
    mlx-lm's own, which are bounded by themselves (`describe` says which by what). The
    automatic backend means the CPU kernels only where they read all that the plan encodes.
    Raises CacheError for a model that ours do not fit.
    """
    config = optional("config", config, CacheConfig) or CacheConfig()
    optional("metric", metric, KeyMetric)
    if config.slack is None:
        config = replace(config, slack=_SLACK)
    layout = layout_of(model)
    if config.max_tokens is None and not layout.context_is_said:
        warnings.warn(
            f"{name_of(model)} does not say for how many tokens it was trained: "
            f"{layout.shape.context:,} are assumed; give max_tokens to say it",
            stacklevel=2,
        )
    plan, ropes = _resolved(config, layout.shape), rotations_of(model)
    if metric is not None:
        metric.check(plan.shape.layers, plan.shape.kv_heads, plan.shape.head_dim)
    made = {
        place: TwoTierKVCache(
            plan.layer(index),
            rotation=rope,
            metric=None if metric is None else metric.layers[index],
        )
        for index, (place, rope) in enumerate(zip(layout.ours, ropes, strict=True))
    }
    if config.budget is not None:
        for cache in made.values():
            cache.most_decoded = 0  # which would lie beside the budget
    places = count()

    def placed(cache: Any) -> AnyCache:
        if type(cache) is mlx_lm_cache.CacheList:
            return mlx_lm_cache.CacheList(*map(placed, cache.caches))
        return made.get(next(places), cache) if is_plain(cache) else cache

    return [placed(cache) for cache in own_caches(model)]


def _resolved(config: CacheConfig, shape: ModelShape) -> CachePlan:
    plan = resolve(config, shape)
    if plan.backend is Backend.CPU and config.backend is Backend.AUTO and not reads_all(plan):
        return replace(plan, backend=Backend.REFERENCE)
    return plan


def inject(
    model: nn.Module, config: CacheConfig | None = None, *, metric: KeyMetric | None = None
) -> None:
    """Make every cache that mlx-lm creates for this model one of ours.

    metric: of the model's queries. mlx_lm.generate and mlx-lm's make_prompt_cache ask the model
    first. Raises CacheError for a model, configuration or metric that does not fit.
    """
    make_prompt_cache(model, config, metric=metric)
    model.make_cache = lambda: make_prompt_cache(model, config, metric=metric)


def factory(config: CacheConfig, metric: KeyMetric | None = None) -> Callable[..., list[AnyCache]]:
    """What stands in for mlx-lm's make_prompt_cache, with its parameters."""

    def make(model: nn.Module, max_kv_size: int | None = None) -> list[AnyCache]:
        bounds = [size for size in (config.max_tokens, max_kv_size) if size is not None]
        bounded = replace(config, max_tokens=min(bounds, default=None))
        return make_prompt_cache(model, bounded, metric=metric)

    return make


def describe(caches: Sequence[AnyCache]) -> str:
    """What bounds each cache of an mlx-lm model, a line for those that are alike."""
    given: object = caches
    if not isinstance(given, Sequence):
        raise refused("caches", given, "the caches of a model")
    alike: dict[str, list[int]] = {}
    for number, cache in enumerate(caches):
        alike.setdefault(_bound(cache), []).append(number)
    return "\n".join(f"{_runs(numbers)}: {bound}" for bound, numbers in alike.items())


def _bound(cache: AnyCache) -> str:
    """What bounds one of them."""
    match cache:
        case TwoTierKVCache(full_plan=plan) if plan.sizes.window:
            return f"ember's, the {plan.sizes.window} tokens that the layer sees"
        case TwoTierKVCache(full_plan=plan):
            older = f", older ones as {plan.keys}/{plan.values}" if plan.sizes.slots else ""
            return (
                f"ember's, {plan.sizes.max_tokens} tokens: the first {plan.sizes.pinned} and "
                f"the newest {plan.sizes.hot} unencoded{older}"
            )
        case mlx_lm_cache.CacheList(caches=several):
            return " and ".join(map(_bound, several))
        case mlx_lm_cache.RotatingKVCache(max_size=tokens):
            return f"mlx-lm's, the {tokens} tokens that the layer sees"
        case mlx_lm_cache.ChunkedKVCache(chunk_size=tokens):
            return f"mlx-lm's, a chunk of {tokens} tokens"
        case mlx_lm_cache.ArraysCache():
            return "mlx-lm's, a state of one size"
        case _:
            return "mlx-lm's, empty: the layer keeps no tokens of its own"


def _runs(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 as "layers 0-2, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    said = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
    return f"layer{'s' * (len(numbers) > 1)} {said}"
