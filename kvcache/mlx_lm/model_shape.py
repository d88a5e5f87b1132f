"""What an mlx-lm model says of its caches: layers, windows, heads, context.

Knows no configuration and makes no cache of ours.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models.cache as mlx_lm_cache

from kvcache.errors import CacheError
from kvcache.given import instance
from kvcache.tiers.plan import ModelShape

_FALLBACK_CONTEXT = 2**17


def shape_of(model: nn.Module) -> ModelShape:
    """What a cache of an mlx-lm model has to hold.

    Raises CacheError for a model that wants other caches than one KVCache or
    RotatingKVCache for each layer (chunks, state spaces), whose layers' keys and values are
    unlike each other, or that does not say its dimensions.
    """
    made = _made_by(instance("model", model, nn.Module))
    windows = tuple(_window(cache, model) for cache in made)
    context = _told(model, "max_position_embeddings") or _FALLBACK_CONTEXT
    alike = not any(windows)
    kv_heads, dim = _said_heads(model) if alike else _appended_heads(model, made)
    return ModelShape(
        layers=len(made),
        kv_heads=kv_heads,
        head_dim=dim,
        context=context,
        windows=() if alike else windows,
    )


def _made_by(model: nn.Module) -> list[Any]:
    """The caches that the model itself would make, one for each layer. Raises CacheError."""
    # The class's own factory: the instance's may be what `inject` put there.
    own = getattr(type(model), "make_cache", None)
    made = own(model) if own else [mlx_lm_cache.KVCache() for _ in model.layers]
    if len(made) != len(model.layers):
        raise CacheError(
            f"{type(model).__name__} wants {len(made)} caches for {len(model.layers)} layers: "
            "ember's stand for one layer each"
        )
    return list(made)


def _window(cache: Any, model: nn.Module) -> int | None:
    """How many tokens the layer of an mlx-lm cache sees. Raises CacheError for other kinds."""
    if type(cache) is mlx_lm_cache.KVCache:
        return None
    if type(cache) is mlx_lm_cache.RotatingKVCache and not cache.keep:
        return int(cache.max_size)
    raise CacheError(
        f"{type(model).__name__} wants {type(cache).__name__}: ember's cache stands in for "
        "KVCache and RotatingKVCache layers only"
    )


def _said_heads(model: nn.Module) -> tuple[int, int]:
    """Hkv and D by the model's arguments."""
    args = model.args
    heads = getattr(args, "num_attention_heads", None)
    kv_heads = getattr(args, "num_key_value_heads", None) or heads
    if not kv_heads:
        raise CacheError(f"{type(model).__name__} does not say how many KV heads it has")
    return kv_heads, getattr(args, "head_dim", None) or args.hidden_size // heads


def _appended_heads(model: nn.Module, caches: list[Any]) -> tuple[int, int]:
    """Hkv and D of what the layers append for a token, of which nothing is computed.

    Models whose layers differ say their dimensions in words of their own.
    """
    model(mx.array([[0]]), cache=caches)
    name, shapes = type(model).__name__, set()
    for cache in caches:
        if cache.keys is None or cache.values is None:
            raise CacheError(f"{name} has layers that share a cache, which ember's do not take")
        shapes |= {(x.shape[1], x.shape[3]) for x in (cache.keys, cache.values)}
    if len(shapes) > 1:
        said = " and ".join(f"{heads} of {dim}" for heads, dim in sorted(shapes))
        raise CacheError(
            f"{name} has keys and values of unlike heads ({said}): ember's cache takes one kind"
        )
    ((kv_heads, dim),) = shapes
    return kv_heads, dim


def _told(model: nn.Module, name: str) -> Any:
    """What a model's arguments say, or those of the language model that it wraps."""
    inner = model.get("language_model")
    value = getattr(model.args, name, None)
    return value if value is not None or inner is None else getattr(inner.args, name, None)
