"""One cache per layer of a model."""

from collections.abc import Sequence
from typing import Protocol

from kvcache.config import CacheConfig
from kvcache.dynamic import DynamicKVCache
from kvcache.plan import CachePlan, ModelShape, resolve


class ShapedModel(Protocol):
    """A model that tells the dimensions its cache depends on."""

    @property
    def shape(self) -> ModelShape:
        """Layers, KV heads, head dimension and context."""
        ...


def make_prompt_cache(
    model: ShapedModel, config: CacheConfig | None = None
) -> list[DynamicKVCache]:
    """The caches that `config` (default: all of the context, fp16) asks for, one per layer."""
    return from_plan(resolve(config or CacheConfig(), model.shape))


def from_plan(
    plan: CachePlan, *, left_padding: Sequence[int] | None = None
) -> list[DynamicKVCache]:
    """The caches of an already resolved plan, one per layer.

    left_padding: leading padding tokens of each row of a batch.
    """
    return [
        DynamicKVCache(
            plan.max_tokens, dtype=plan.hot_dtype, backend=plan.backend, left_padding=left_padding
        )
        for _ in range(plan.shape.layers)
    ]
