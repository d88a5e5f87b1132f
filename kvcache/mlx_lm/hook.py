"""mlx-lm's attention and its factory of caches, replaced by ours while installed."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx_lm.models.base as base
import mlx_lm.models.cache as mlx_lm_cache
from mlx_lm import server

from kvcache.config import CacheConfig
from kvcache.fetching import FetchedKeys
from kvcache.given import optional
from kvcache.key_metric import KeyMetric
from kvcache.mlx_lm.factory import factory
from kvcache.mlx_lm.serving import load_default, stock_load_default
from kvcache.reference import Mask
from kvcache.two_tier import TwoTierKVCache

_ATTENTION, _FACTORY = "scaled_dot_product_attention", "make_prompt_cache"


def install(config: CacheConfig | None = None, *, metric: KeyMetric | None = None) -> None:
    """Let mlx-lm's attention read our caches' tiers.

    config: also make every cache that mlx-lm creates, in its server too, one of
    ours; a `max_kv_size` that mlx-lm is given bounds its tokens. metric: of the queries of
    the one model that is used then. Models that ours, or the metric, do not fit then raise
    CacheError; mlx-lm's server answers with its words.
    """
    optional("config", config, CacheConfig)
    optional("metric", metric, KeyMetric)
    uninstall()
    TwoTierKVCache.keeps_snapshot = True
    _replace(base, _ATTENTION, attend)
    if config is not None:
        _replace(mlx_lm_cache, _FACTORY, factory(config, metric))
        server.ModelProvider.load_default = load_default


def uninstall() -> None:
    """Undo `install`."""
    TwoTierKVCache.keeps_snapshot = False
    _replace(base, _ATTENTION, _stock)
    _replace(mlx_lm_cache, _FACTORY, _stock_factory)
    server.ModelProvider.load_default = stock_load_default


_stock = base.scaled_dot_product_attention
_stock_factory = mlx_lm_cache.make_prompt_cache


def attend(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    cache: Any,
    scale: float,
    mask: Mask,
    sinks: mx.array | None = None,
) -> mx.array:
    """mlx-lm's attention, but over the tiers where they are ours.

    keys and values, which mlx-lm has from update_and_fetch, stay unevaluated then.
    """
    if isinstance(keys, FetchedKeys):
        ours = sinks is None and keys.are_of(cache, values)
        out = keys.cache.attend_fetched(queries, scale=scale, mask=mask) if ours else None
        if out is not None:
            return out
        keys.cache.look_at(keys)
    stock: mx.array = _stock(
        queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks
    )
    return stock


def _replace(home: ModuleType, name: str, new: Callable[..., Any]) -> None:
    """In mlx-lm's `home`, so that modules imported later have it too, and where it is known."""
    old = vars(home)[name]
    for module in [home, *sys.modules.values()]:
        if module.__name__.startswith("mlx_lm.") and vars(module).get(name) is old:
            setattr(module, name, new)
