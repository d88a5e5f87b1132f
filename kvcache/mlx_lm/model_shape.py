"""What an mlx-lm model says of its caches: which ours replace, windows, heads, context.

Knows no configuration and makes no cache of ours.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.nn as nn
import mlx_lm.models.cache as mlx_lm_cache

from kvcache.errors import CacheError
from kvcache.given import instance
from kvcache.mlx_lm.probe import Probe, Recorder, is_plain, name_of, own_caches
from kvcache.tiers.plan import ModelShape

_FALLBACK_CONTEXT = 2**17
# What models call the longest distance that they were trained for.
_CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_context_length")
# Other kinds that hold no more however long the text is.
_BOUNDED = (
    mlx_lm_cache.ArraysCache,
    mlx_lm_cache.ChunkedKVCache,
    mlx_lm_cache.RotatingKVCache,
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which of a model's caches ours replace, and what these have to hold.

    ours: their numbers among the caches that a probe records.
    context_is_said: whether the model says for how many tokens it was trained; else it is a guess.
    """

    ours: tuple[int, ...]
    shape: ModelShape
    context_is_said: bool


def shape_of(model: nn.Module) -> ModelShape:
    """What ours have to hold of an mlx-lm model, whose other layers keep mlx-lm's own caches.

    Raises CacheError for a model whose keys and values ours cannot hold.
    """
    return layout_of(model).shape


def layout_of(model: nn.Module) -> Layout:
    """The same, and where ours go. Runs the model without computing anything.

    All KVCache layers are ours, and RotatingKVCache layers whose keys are as theirs. Others
    stay where they are bounded by themselves (state spaces, chunks, windows); layers that
    append nothing, such as those that share a cache, stay too.
    """
    name = name_of(instance("model", model, nn.Module))
    plain = _plain_of(name, own_caches(model))
    recorders = Probe(model).appended(0).recorders
    told = {
        index: _heads(name, kind, recorder)
        for index, (kind, recorder) in enumerate(zip(plain, recorders, strict=True))
        if recorder.tokens is not None and not _sees_more(kind, plain, recorders)
    }
    dim = _key_length(name, {index: heads[1] for index, heads in told.items()}, plain)
    ours = tuple(index for index, heads in told.items() if heads[1] == dim)
    windows = tuple(_window(plain[index]) for index in ours)
    context = _context(model)
    shape = ModelShape(
        layers=len(ours),
        # A layer of fewer heads than others takes less than is planned for it.
        kv_heads=max(told[index][0] for index in ours),
        head_dim=dim,
        context=context or _FALLBACK_CONTEXT,
        windows=windows if any(windows) else (),
    )
    return Layout(ours=ours, shape=shape, context_is_said=context is not None)


def _context(model: nn.Module) -> int | None:
    """The longest distance that the model was trained for, in tokens; None: it does not say."""
    for module in model.modules():
        for said in (vars(module).get("args"), vars(module).get("config")):
            known = vars(said) if said is not None else {}
            for name in _CONTEXTS:
                told = known.get(name)
                if isinstance(told, int):
                    return told
    return None


def _plain_of(name: str, caches: Sequence[Any]) -> list[Any]:
    """Those that ours can stand in for; the others must be bounded by themselves."""
    kinds = [cache for each in caches for cache in _leaves(each)]
    for kind in kinds:
        if not is_plain(kind) and not isinstance(kind, _BOUNDED):
            raise CacheError(
                f"{name} wants {type(kind).__name__}: ember's cache stands in for "
                "KVCache and RotatingKVCache layers only, use mlx-lm's own caches"
            )
    return [kind for kind in kinds if is_plain(kind)]


def _key_length(name: str, dims: Mapping[int, int], plain: Sequence[Any]) -> int:
    """D of the layers that are ours: of those that see all tokens, or else of windows."""
    whole = {dim for index, dim in dims.items() if _window(plain[index]) is None}
    if len(whole) > 1:
        said = " and ".join(map(str, sorted(whole)))
        raise CacheError(
            f"{name} has keys of unlike lengths ({said}): ember's cache takes one, use mlx-lm's "
            "own caches"
        )
    found = next(iter(whole or filter(None, dims.values())), 0)
    if not found:
        raise CacheError(
            f"{name} has no layer whose keys and values ember's cache could hold: use mlx-lm's own "
            "caches, which do not grow"
        )
    return found


def _leaves(cache: Any) -> Iterator[Any]:
    if type(cache) is mlx_lm_cache.CacheList:
        for each in cache.caches:
            yield from _leaves(each)
    else:
        yield cache


def _window(cache: Any) -> int | None:
    """How many tokens the layer of a plain cache sees; None: all."""
    return int(cache.max_size) if type(cache) is mlx_lm_cache.RotatingKVCache else None


def _sees_more(cache: Any, plain: Sequence[Any], recorders: Sequence[Recorder]) -> bool:
    """Whether a window's prompts see more tokens than it holds, which ours would not show."""
    window = _window(cache)
    alike = zip(plain, recorders, strict=True)
    return window is not None and any(
        recorder.widest > window for each, recorder in alike if _window(each) == window
    )


def _heads(name: str, cache: Any, recorder: Recorder) -> tuple[int, int]:
    """Hkv and D of what a layer appends; no D where mlx-lm's own cache must stay.

    Raises CacheError where it must not, as it would grow without end.
    """
    assert recorder.tokens is not None, "only layers that append are asked"
    keys, values = recorder.tokens
    if keys.shape == values.shape:
        return keys.shape[1], keys.shape[3]
    if _window(cache) is not None:
        return keys.shape[1], 0
    raise CacheError(
        f"{name} keeps keys of {keys.shape[1]} heads of {keys.shape[3]} numbers and values of "
        f"{values.shape[1]} of {values.shape[3]}: ember's cache takes alike ones, use mlx-lm's own "
        "caches"
    )
