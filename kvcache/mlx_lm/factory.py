"""The caches of an mlx-lm model, made when a script or mlx-lm itself asks for them."""

from collections.abc import Callable
from dataclasses import replace

import mlx.nn as nn

from kvcache.config import Backend, CacheConfig
from kvcache.given import optional
from kvcache.key_metric import KeyMetric
from kvcache.mlx_lm.model_shape import shape_of
from kvcache.mlx_lm.ropes import rotations_of
from kvcache.tiers.plan import resolve
from kvcache.two_tier import TwoTierKVCache

# Newest tokens that can always be trimmed where nothing else is asked for: drafts are shorter.
_SLACK = 16


def make_prompt_cache(
    model: nn.Module, config: CacheConfig | None = None, *, metric: KeyMetric | None = None
) -> list[TwoTierKVCache]:
    """The caches that `config` asks for, one per layer of an mlx-lm model.

    mlx-lm's own networks run in MLX everywhere, so the automatic backend never
    means the CPU kernels here. Raises CacheError for a model that ours
    do not fit.
    """
    config = optional("config", config, CacheConfig) or CacheConfig()
    optional("metric", metric, KeyMetric)
    if config.slack is None:
        config = replace(config, slack=_SLACK)
    if config.backend is Backend.AUTO and config.backend.resolve() is not Backend.GPU:
        config = replace(config, backend=Backend.REFERENCE)
    plan, ropes = resolve(config, shape_of(model)), rotations_of(model)
    if metric is not None:
        metric.check(plan.shape.layers, plan.shape.kv_heads, plan.shape.head_dim)
    return [
        TwoTierKVCache(
            plan.layer(index),
            rotation=rope,
            metric=None if metric is None else metric.layers[index],
        )
        for index, rope in enumerate(ropes)
    ]


def inject(
    model: nn.Module, config: CacheConfig | None = None, *, metric: KeyMetric | None = None
) -> None:
    """Make every cache that mlx-lm creates for this model one of ours.

    metric: of the model's queries. mlx_lm.generate and mlx-lm's make_prompt_cache ask the model
    first. Raises CacheError for a model, configuration or metric that does not fit.
    """
    make_prompt_cache(model, config, metric=metric)
    model.make_cache = lambda: make_prompt_cache(model, config, metric=metric)


def factory(
    config: CacheConfig, metric: KeyMetric | None = None
) -> Callable[..., list[TwoTierKVCache]]:
    """What stands in for mlx-lm's make_prompt_cache, with its parameters."""

    def make(model: nn.Module, max_kv_size: int | None = None) -> list[TwoTierKVCache]:
        bounds = [size for size in (config.max_tokens, max_kv_size) if size is not None]
        bounded = replace(config, max_tokens=min(bounds, default=None))
        return make_prompt_cache(model, bounded, metric=metric)

    return make
