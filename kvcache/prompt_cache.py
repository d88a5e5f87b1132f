"""One cache per layer of a model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, overload, runtime_checkable

import mlx.nn as nn

from kvcache.codecs.feedback import LayerMetric
from kvcache.config import Backend, CacheConfig
from kvcache.errors import CacheError
from kvcache.given import instance, integers, optional, refused
from kvcache.key_metric import KeyMetric
from kvcache.rows import RowsKVCache
from kvcache.tiers.cpu import reads_all
from kvcache.tiers.ledger import Ledger
from kvcache.tiers.plan import CachePlan, ModelShape, resolve
from kvcache.turn import NO_ROPE, Rotation
from kvcache.two_tier import TwoTierKVCache


@runtime_checkable
class ShapedModel(Protocol):
    """A model that tells what its cache depends on."""

    @property
    def shape(self) -> ModelShape:
        """Layers and their windows, KV heads, head dimension and context."""
        ...

    @property
    def rotations(self) -> Sequence[Rotation | None]:
        """What the rope of each layer does, as a pure turn; None where it has none."""
        ...


# Of all layers alike, where None is an unknown rope, or of each, where None is no rope.
Rotations = Rotation | Sequence[Rotation | None] | None


@overload
def make_prompt_cache(
    model: ShapedModel, config: CacheConfig | None = None, *, metric: KeyMetric | None = None
) -> list[TwoTierKVCache]: ...


@overload
def make_prompt_cache(
    model: nn.Module, config: CacheConfig | None = None, *, metric: KeyMetric | None = None
) -> list[Any]: ...


def make_prompt_cache(
    model: ShapedModel | nn.Module,
    config: CacheConfig | None = None,
    *,
    metric: KeyMetric | None = None,
) -> list[Any]:
    """The caches that `config` (default: all of the model's context) asks for, one per layer.

    model: one of ember's, or one of mlx-lm's, of which some layers keep mlx-lm's own caches
    (see `kvcache.mlx_lm`). metric: of the model's
    queries, by which keys lose less (`models.calibrate`). On a GPU the
    first answer compiles kernels, unless `warm_up(resolve(config, shape), ...)` ran.
    """
    optional("config", config, CacheConfig)
    optional("metric", metric, KeyMetric)
    if not isinstance(model, ShapedModel):
        instance("model", model, nn.Module)
        from kvcache import mlx_lm

        return mlx_lm.make_prompt_cache(model, config, metric=metric)
    return from_plan(resolve(config or CacheConfig(), model.shape), model.rotations, metric)


def load_prompt_cache(path: Path | str) -> list[Any]:
    """The caches of a file of mlx-lm's `save_prompt_cache`, in any process.

    Raises CacheError for what is no such file, or damaged.
    """
    from kvcache import mlx_lm

    return mlx_lm.load_prompt_cache(path)


def from_plan(
    plan: CachePlan, rotation: Rotations, metric: KeyMetric | None = None
) -> list[TwoTierKVCache]:
    """The caches of an already resolved plan, one per layer.

    Raises CacheError for ropes of more or fewer layers, or the metric of another model.
    """
    metrics: Sequence[LayerMetric | None] = [None] * plan.shape.layers
    if metric is not None:
        metric.check(plan.shape.layers, plan.shape.kv_heads, plan.shape.head_dim)
        metrics = metric.layers
    turns = each_layer(rotation, plan.shape.layers)
    return [
        TwoTierKVCache(plan.layer(index), rotation=turn, metric=of_layer)
        for index, (turn, of_layer) in enumerate(zip(turns, metrics, strict=True))
    ]


def each_layer(rotation: Rotations, layers: int) -> list[Rotation | None]:
    """The rope of each layer; None where it is not known."""
    if rotation is None or isinstance(rotation, Rotation):
        return [rotation] * layers
    given: object = rotation
    if not isinstance(given, list | tuple):
        raise refused("rotation", given, "a Rotation, or one for each layer")
    for each in given:
        optional("rotation", each, Rotation)
    if len(rotation) != layers:
        raise CacheError(f"got ropes of {len(rotation)} layers, expected {layers}")
    return [NO_ROPE if each is None else each for each in rotation]


def rows_from_plan(
    plan: CachePlan,
    rotation: Rotations,
    metric: KeyMetric | None = None,
    *,
    left_padding: Sequence[int],
) -> list[RowsKVCache]:
    """Caches for a batch, one per layer; every row gets the whole plan.

    left_padding: leading padding tokens of each row.
    """
    rows = [from_plan(plan, rotation, metric) for _ in left_padding]
    return [
        RowsKVCache([row[index] for row in rows], left_padding)
        for index in range(plan.shape.layers)
    ]


def make_rows_cache(
    model: ShapedModel,
    config: CacheConfig | None = None,
    *,
    left_padding: Sequence[int],
    metric: KeyMetric | None = None,
) -> list[RowsKVCache]:
    """Caches of a batch of unequal prompts, one per layer of one of ember's networks.

    left_padding: leading padding tokens of each row, which no row's cache ever holds. Every
    row gets all that `config` asks for.
    """
    if not isinstance(model, ShapedModel):
        raise refused("model", model, "one of ember's: mlx-lm's networks take no rows")
    optional("config", config, CacheConfig)
    optional("metric", metric, KeyMetric)
    padding = integers("left_padding", left_padding)
    if not padding:
        raise refused("left_padding", left_padding, "padding tokens of each row")
    plan = resolve(config or CacheConfig(), model.shape)
    return rows_from_plan(plan, model.rotations, metric, left_padding=padding)


def few_are_alike(plan: CachePlan) -> bool:
    """Whether a few new tokens give, to the last bit, what they give one by one.

    By the CPU kernels, which let them attend so; each must have `room`.
    """
    return plan.backend is Backend.CPU and reads_all(plan)


def set_policy(caches: Sequence[TwoTierKVCache], plan: CachePlan) -> None:
    """Move the caches of a running chat to another plan (`TwoTierKVCache.set_policy`).

    Raises CacheError, and changes no layer, for the plan of another number of layers, and where
    one cannot hold its tokens as the plan wants: one with a window that let tokens go has no sinks
    to become as others are.
    """
    instance("plan", plan, CachePlan)
    if not isinstance(caches, Sequence) or not all(
        isinstance(each, TwoTierKVCache) for each in caches
    ):
        raise refused("caches", caches, "a TwoTierKVCache for each layer")
    if len(caches) != plan.shape.layers:
        raise CacheError(
            f"got a plan of {plan.shape.layers} layers for {len(caches)} caches, expected as many: "
            "resolve the configuration with the shape of the caches' model"
        )
    for cache, sizes in zip(caches, plan.layer_sizes, strict=True):
        cache.ledger.resized(sizes)
    for index, cache in enumerate(caches):
        cache.set_policy(plan.layer(index))


class _Rewindable(Protocol):
    """A layer's cache, or its ledger alone."""

    ledger: Ledger

    @property
    def offset(self) -> int: ...

    def rewind(self, tokens: int, /) -> int: ...


@dataclass
class _Trial:
    """What becomes of a cache, without one."""

    ledger: Ledger

    @property
    def offset(self) -> int:
        return self.ledger.total

    def rewind(self, tokens: int) -> int:
        before, self.ledger = self.ledger, self.ledger.rewound(tokens)
        return before.total - self.ledger.total


def reach(ledgers: Iterable[Ledger], plan: CachePlan, *, tokens: int, total: int) -> int:
    """What `rewind` would return of caches with these ledgers; touches none."""
    return rewind([_Trial(each) for each in ledgers], plan, tokens=tokens, total=total)


def rewind(caches: Sequence[_Rewindable], plan: CachePlan, *, tokens: int, total: int) -> int:
    """Go back to the first `tokens` of the `total` that will be held, or before, in all layers.

    Returns how many are there, from which on all others are to be appended. What was let
    go does not come back: where a layer would miss what it would hold of `total` tokens fed
    anew, or of its window, they are to be computed again, but never more than `plan` holds.
    """
    whole = [cache for cache in caches if cache.ledger.sizes.window is None]
    while any(cache.offset != tokens for cache in whole):
        for cache in whole:
            cache.rewind(cache.offset - tokens)
        tokens = min(cache.offset for cache in whole)
    windows = [cache for cache in caches if cache.ledger.sizes.window is not None]
    for cache in windows:
        cache.rewind(cache.offset - tokens)
    lost = any(cache.offset != tokens for cache in windows)
    if not lost and not any(cache.ledger.must_restart(total) for cache in whole):
        return tokens
    # What a layer that sees all tokens goes on from, be there any or not.
    seen = Ledger(sizes=plan.sizes, total=min(tokens, plan.sizes.pinned))
    start = seen.restarted(total)
    if windows and not start.evicted:
        start = Ledger(sizes=plan.sizes)
    for cache in caches:
        cache.ledger = Ledger(sizes=cache.ledger.sizes).emptied(start.total)
    return start.total
