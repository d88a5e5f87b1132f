"""MLX's attention and mlx-lm's factory of caches, replaced by ours while installed."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx_lm.models.cache as mlx_lm_cache
from mlx_lm import server

from kvcache.config import CacheConfig
from kvcache.fetched.marks import fetch_of, looked_at
from kvcache.given import optional
from kvcache.key_metric import KeyMetric
from kvcache.mlx_lm.factory import factory
from kvcache.mlx_lm.serving import load_default, stock_load_default
from kvcache.reference import Mask
from kvcache.two_tier import TwoTierKVCache

_ATTENTION, _FACTORY = "scaled_dot_product_attention", "make_prompt_cache"


def install(config: CacheConfig | None = None, *, metric: KeyMetric | None = None) -> None:
    """Let attention read our caches' tiers: MLX's, which mlx-lm's networks call.

    config: also make every cache that mlx-lm creates, in its server too, one of
    ours; a `max_kv_size` that mlx-lm is given bounds its tokens. metric: of the queries of
    the one model that is used then. Models that ours, or the metric, do not fit then raise
    CacheError; mlx-lm's server answers with its words.
    """
    optional("config", config, CacheConfig)
    optional("metric", metric, KeyMetric)
    uninstall()
    TwoTierKVCache.keeps_snapshot = True
    _attention.take_place()
    if config is not None:
        _replace(mlx_lm_cache, _FACTORY, factory(config, metric))
        server.ModelProvider.load_default = load_default


def uninstall() -> None:
    """Undo `install`."""
    TwoTierKVCache.keeps_snapshot = False
    _attention.give_place()
    _replace(mlx_lm_cache, _FACTORY, _stock_factory)
    server.ModelProvider.load_default = stock_load_default


_stock_factory = mlx_lm_cache.make_prompt_cache


def attend(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: Mask = None,
    sinks: mx.array | None = None,
    **more: Any,
) -> mx.array:
    """MLX's attention, but over the tiers where keys and values are what a cache of ours gave.

    They are not computed then.
    """
    fetch = fetch_of(k, v)
    if fetch is not None and sinks is None:
        out = fetch.attend(q, scale, mask)
        if out is not None:
            return out
    stock: mx.array = _attention.stock(
        q, looked_at(k), looked_at(v), scale=scale, mask=mask, sinks=sinks, **more
    )
    return stock


class _Attention:
    """The place of MLX's attention. stock: what stands there, or stood before ours."""

    def __init__(self) -> None:
        self.stock: Callable[..., Any] = mx.fast.scaled_dot_product_attention
        self._is_taken = False

    def take_place(self) -> None:
        # Another's may stand on ours since: then ours is called by it.
        if not self._is_taken:
            self.stock = mx.fast.scaled_dot_product_attention
            setattr(mx.fast, _ATTENTION, attend)
            self._is_taken = True

    def give_place(self) -> None:
        if mx.fast.scaled_dot_product_attention is attend:
            setattr(mx.fast, _ATTENTION, self.stock)
            self._is_taken = False


_attention = _Attention()


def _replace(home: ModuleType, name: str, new: Callable[..., Any]) -> None:
    """In mlx-lm's `home`, so that modules imported later have it too, and where it is known."""
    old = vars(home)[name]
    for module in [home, *sys.modules.values()]:
        if module.__name__.startswith("mlx_lm.") and vars(module).get(name) is old:
            setattr(module, name, new)
