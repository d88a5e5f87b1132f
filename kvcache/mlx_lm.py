"""ember's cache in stock mlx-lm: shapes and ropes of its models, injection, attention.

    cache = make_prompt_cache(model, config)        works in every mlx-lm loop as it is
    inject(model, config)                           mlx-lm's factory makes it for this model
    install()                                       attention reads the tiers themselves
    install(config)                                 and every cache that mlx-lm makes is ours
    load_prompt_cache(path)                         mlx-lm's, for files that may be damaged

Importing this module lets mlx-lm's `load_prompt_cache` find our caches. Without
`install`, attention runs over what `update_and_fetch` returns: decoded keys
and values, correct in any model, at the memory of an f16 window. mlx-lm's batch
generation is refused by mlx-lm itself; its server then answers one after another.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models.base as base
import mlx_lm.models.cache as mlx_lm_cache
import numpy as np
import numpy.typing as npt
from mlx_lm.models import cohere2, rope_utils

from kvcache.config import Backend, CacheConfig
from kvcache.errors import CacheError, reason
from kvcache.key_metric import KeyMetric
from kvcache.reference import Mask
from kvcache.tiers.plan import ModelShape, resolve
from kvcache.turn import NO_ROPE, Rotation
from kvcache.two_tier import TwoTierKVCache
from kvcache.unencoded.dynamic import DynamicKVCache
from kvcache.unencoded.paged import PagedKVCache

_ATTENTION, _FACTORY = "scaled_dot_product_attention", "make_prompt_cache"
_FALLBACK_CONTEXT = 2**17
# Of a layer's or an array's number in a saved cache.
_PLACE_DIGITS = 5
# What mlx-lm's reader of saved caches raises of damage.
_FAULTS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)

# load_prompt_cache looks its classes up among these.
for _class in (TwoTierKVCache, DynamicKVCache, PagedKVCache):
    setattr(mlx_lm_cache, _class.__name__, _class)


def make_prompt_cache(
    model: nn.Module, config: CacheConfig | None = None, *, metric: KeyMetric | None = None
) -> list[TwoTierKVCache]:
    """The caches that `config` asks for, one per layer of an mlx-lm model.

    mlx-lm's own networks run in MLX everywhere, so the automatic backend never
    means the CPU kernels here. Raises CacheError for a model that ours
    do not fit.
    """
    config = config or CacheConfig()
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


def load_prompt_cache(path: Path | str) -> list[Any]:
    """The caches of a file of mlx-lm's `save_prompt_cache`, which may be damaged.

    mlx-lm's own reader makes lists as long as a number in the file says, and raises
    whatever it meets. Raises CacheError instead, for what is no such file too.
    """
    try:
        arrays, texts = mx.load(str(path), return_metadata=True)
        places = (part for name in (*arrays, *texts) for part in name.split("."))
        if any(part.isdecimal() and len(part) > _PLACE_DIGITS for part in places):
            raise CacheError(f"{path} is damaged: it names places that no saved cache has")
        caches: list[Any] = mlx_lm_cache.load_prompt_cache(str(path))
    except _FAULTS as error:
        raise CacheError(f"{path} is no saved cache, or a damaged one ({reason(error)})") from error
    return caches


def shape_of(model: nn.Module) -> ModelShape:
    """What a cache of an mlx-lm model has to hold.

    Raises CacheError for a model that wants other caches than one KVCache or
    RotatingKVCache for each layer (chunks, state spaces), whose layers' keys and values are
    unlike each other, or that does not say its dimensions.
    """
    made = _made_by(model)
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


def rotation_of(model: nn.Module) -> Rotation | None:
    """What the rope of all layers does as a pure turn; None where it is not known, or not one."""
    first, *others = rotations_of(model)
    alike = first is not None and all(one and one.key == first.key for one in others)
    return first if alike else None


def rotations_of(model: nn.Module) -> list[Rotation | None]:
    """The same of each layer's own: None where it is not known, NO_ROPE where it has none."""
    found = [[m for m in layer.modules() if _is_rope(m)] for layer in model.layers]
    # A model without any knows positions in another way, or not from its modules.
    absent = NO_ROPE if any(found) else None
    turns = [
        _one_of(ropes) if ropes and _is_applied(layer) else absent
        for layer, ropes in zip(model.layers, found, strict=True)
    ]
    # One object for layers that turn alike, so that what follows of it is worked out once.
    by_key = {turn.key: turn for turn in turns if turn is not None}
    return [turn and by_key[turn.key] for turn in turns]


def _one_of(ropes: list[nn.Module]) -> Rotation | None:
    """The turn of a layer's ropes; None where they differ or are not known."""
    first, *others = map(_rotation, ropes)
    alike = first is not None and all(one and one.key == first.key for one in others)
    return first if alike else None


def _is_applied(layer: nn.Module) -> bool:
    """Whether a layer uses its rope: Cohere's layers that see all tokens leave theirs aside."""
    attention = layer.get("self_attn")
    return not isinstance(attention, cohere2.Attention) or attention.use_sliding_window


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


def inject(model: nn.Module, config: CacheConfig | None = None) -> None:
    """Make every cache that mlx-lm creates for this model one of ours.

    mlx_lm.generate and mlx-lm's make_prompt_cache ask the model first. Raises
    CacheError for a model or configuration that does not fit.
    """
    make_prompt_cache(model, config)
    model.make_cache = lambda: make_prompt_cache(model, config)


def install(config: CacheConfig | None = None) -> None:
    """Let mlx-lm's attention read our caches' tiers.

    config: also make every cache that mlx-lm creates, in its server too, one of
    ours; a `max_kv_size` that mlx-lm is given bounds its tokens. Models that ours
    do not fit then raise CacheError.
    """
    uninstall()
    TwoTierKVCache.keeps_snapshot = True
    _replace(base, _ATTENTION, _routed)
    if config is not None:
        _replace(mlx_lm_cache, _FACTORY, _factory(config))


def uninstall() -> None:
    """Undo `install`."""
    TwoTierKVCache.keeps_snapshot = False
    _replace(base, _ATTENTION, _stock)
    _replace(mlx_lm_cache, _FACTORY, _stock_factory)


_stock = base.scaled_dot_product_attention
_stock_factory = mlx_lm_cache.make_prompt_cache


def _routed(
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
    if isinstance(cache, TwoTierKVCache) and sinks is None:
        out = cache.attend_fetched(queries, scale=scale, mask=mask)
        if out is not None:
            return out
    stock: mx.array = _stock(
        queries, keys, values, cache=cache, scale=scale, mask=mask, sinks=sinks
    )
    return stock


def _factory(config: CacheConfig) -> Callable[..., list[TwoTierKVCache]]:
    """What stands in for mlx-lm's make_prompt_cache, with its parameters."""

    def make(model: nn.Module, max_kv_size: int | None = None) -> list[TwoTierKVCache]:
        bounds = [size for size in (config.max_tokens, max_kv_size) if size is not None]
        return make_prompt_cache(model, replace(config, max_tokens=min(bounds, default=None)))

    return make


def _replace(home: ModuleType, name: str, new: Callable[..., Any]) -> None:
    """In mlx-lm's `home`, so that modules imported later have it too, and where it is known."""
    old = vars(home)[name]
    for module in [home, *sys.modules.values()]:
        if module.__name__.startswith("mlx_lm.") and vars(module).get(name) is old:
            setattr(module, name, new)


def _is_rope(module: nn.Module) -> bool:
    return isinstance(module, nn.RoPE) or type(module).__module__ == rope_utils.__name__


def _rotation(rope: nn.Module) -> Rotation | None:
    """The turn of one of the ropes that mlx-lm makes; scales are not part of it."""
    if type(rope) is nn.RoPE:
        base_periods = rope.base ** (np.arange(0, rope.dims, 2) / rope.dims)
        return Rotation(periods=base_periods / rope.scale, traditional=rope.traditional)
    if isinstance(rope, rope_utils.SuScaledRoPE):
        return Rotation(periods=_periods(rope), traditional=False)
    if isinstance(rope, rope_utils.Llama3RoPE | rope_utils.YarnRoPE):
        return Rotation(periods=_periods(rope), traditional=rope.traditional)
    return None


def _periods(rope: nn.Module) -> npt.NDArray[np.float64]:
    return np.asarray(rope._freqs).astype(np.float64)
