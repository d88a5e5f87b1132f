"""One cache per layer of a model."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import mlx.nn as nn

from kvcache.config import CacheConfig
from kvcache.rows import RowsKVCache
from kvcache.tiers.plan import CachePlan, ModelShape, resolve
from kvcache.turn import Rotation
from kvcache.two_tier import TwoTierKVCache


@runtime_checkable
class ShapedModel(Protocol):
    """A model that tells what its cache depends on."""

    @property
    def shape(self) -> ModelShape:
        """Layers, KV heads, head dimension and context."""
        ...

    @property
    def rotation(self) -> Rotation:
        """What its rope does, as a pure turn."""
        ...


def make_prompt_cache(
    model: ShapedModel | nn.Module, config: CacheConfig | None = None
) -> list[TwoTierKVCache]:
    """The caches that `config` (default: all of the model's context) asks for, one per layer.

    model: one of ember's, or one of mlx-lm's (see `kvcache.mlx_lm`). On a GPU the
    first answer compiles kernels, unless `warm_up(resolve(config, shape), ...)` ran.
    """
    if not isinstance(model, ShapedModel):
        from kvcache import mlx_lm

        return mlx_lm.make_prompt_cache(model, config)
    return from_plan(resolve(config or CacheConfig(), model.shape), model.rotation)


def from_plan(plan: CachePlan, rotation: Rotation | None) -> list[TwoTierKVCache]:
    """The caches of an already resolved plan, one per layer."""
    return [
        TwoTierKVCache(plan.layer(index), rotation=rotation) for index in range(plan.shape.layers)
    ]


def rows_from_plan(
    plan: CachePlan, rotation: Rotation | None, *, left_padding: Sequence[int]
) -> list[RowsKVCache]:
    """Caches for a batch, one per layer; every row gets the whole plan.

    left_padding: leading padding tokens of each row.
    """
    rows = [from_plan(plan, rotation) for _ in left_padding]
    return [
        RowsKVCache([row[index] for row in rows], left_padding)
        for index in range(plan.shape.layers)
    ]


def set_policy(caches: Sequence[TwoTierKVCache], plan: CachePlan) -> None:
    """Move the caches of a running chat to another plan (`TwoTierKVCache.set_policy`)."""
    for index, cache in enumerate(caches):
        cache.set_policy(plan.layer(index))
