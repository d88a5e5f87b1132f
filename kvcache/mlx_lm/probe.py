"""What the layers of an mlx-lm model append for a token at a position, found by running them.

The model's own forward pass runs, on caches that only record, in a copy in which each layer
is given noise in place of what the layers before it computed, and projects by numbers of our own
in place of its weights. MLX is lazy: what is never looked at is never computed, so an evaluated
key costs its layer's norms and ropes of one token and reads no large weight. Knows no kind of
model and no cache of ours.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models
import mlx_lm.models.cache as mlx_lm_cache

from kvcache.errors import CacheError

# The kinds that keep every token, or the newest ones, as they come.
_PLAIN = (mlx_lm_cache.KVCache, mlx_lm_cache.RotatingKVCache)


class UnknownUseError(CacheError, AttributeError):
    """A model that asks its cache for what ours have not; an AttributeError for `hasattr`."""


@dataclass
class _Layer:
    """Which layer of a copied model is running, and what it was given."""

    runs: bool = False
    given: list[mx.array] = field(default_factory=list)


class Recorder:
    """Stands where mlx-lm's plain cache would, at a position, and keeps what is appended.

    tokens: the keys and values [1, Hkv, 1, D], not computed; None before the first.
    isolated: whether they depend on nothing but one layer and its noise.
    widest: the widest window that a mask was asked for.
    """

    def __init__(self, kind: str, position: int, layer: _Layer) -> None:
        self.offset, self.isolated, self.widest = position, False, 0
        self.tokens: tuple[mx.array, mx.array] | None = None
        self._kind, self._layer = kind, layer

    def update_and_fetch(self, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        """Record; returns as many tokens as such a cache would hold, all of them this one."""
        if self.tokens is not None:
            raise UnknownUseError(f"appends twice to one {self._kind} for a token")
        self.tokens, self.isolated = (k, v), self._layer.runs
        # What a model ties to its ranks' messages is not what is looked at.
        self.keys, self.values = k, v
        self.offset += k.shape[2]
        keys, values = (mx.broadcast_to(x, (*x.shape[:2], self.offset, x.shape[3])) for x in (k, v))
        return keys, values

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | None:
        """A mask that hides nothing, of the shape that is wanted."""
        self.widest = max(self.widest, window_size or 0)
        if not return_array and window_size is None:
            return None
        return mx.broadcast_to(mx.array(True), (length, self.offset + length))

    def __getattr__(self, name: str) -> Any:
        raise UnknownUseError(f"asks its {self._kind} for {name!r}")


@dataclass(frozen=True, kw_only=True)
class Appended:
    """What a forward pass of one token at a position leaves: nothing of it is computed.

    entered: what the first layer was given, [1, 1, hidden] in most models; none where no
    layer was called as one.
    """

    recorders: Sequence[Recorder]
    entered: mx.array | None


def name_of(model: nn.Module) -> str:
    """What mlx-lm calls a kind of model; all of its classes are called Model."""
    home, _, name = type(model).__module__.rpartition(".")
    return name if home == mlx_lm.models.__name__ else type(model).__name__


def is_plain(cache: Any) -> bool:
    """Whether an mlx-lm cache is one that ours can stand in for, by its kind."""
    rotating = type(cache) is mlx_lm_cache.RotatingKVCache
    return type(cache) in _PLAIN and not (rotating and cache.keep)


def own_caches(model: nn.Module) -> list[Any]:
    """The caches that the model itself would make."""
    # The class's own factory: the instance's may be what `inject` put there.
    own = getattr(type(model), "make_cache", None)
    return list(own(model)) if own else [mlx_lm_cache.KVCache() for _ in model.layers]


class Probe:
    """A copy of a model, of the same weights, in which each layer is given noise."""

    def __init__(self, model: nn.Module) -> None:
        self._name, self._caches = name_of(model), partial(own_caches, model)
        self._layer = _Layer()
        self._copy = _isolated(model, model.layers, self._layer)

    def appended(self, position: int) -> Appended:
        """What each plain cache of the model is given for a token at `position`.

        Raises CacheError for a model that uses such a cache in a way that ours do not know.
        """
        recorders: list[Recorder] = []

        def record(cache: Any) -> Any:
            if type(cache) is mlx_lm_cache.CacheList:
                return mlx_lm_cache.CacheList(*map(record, cache.caches))
            if not is_plain(cache):
                return cache
            recorders.append(Recorder(type(cache).__name__, position, self._layer))
            return recorders[-1]

        self._layer.given.clear()
        try:
            self._copy(mx.array([[0]]), cache=[record(cache) for cache in self._caches()])
        except UnknownUseError as error:
            raise CacheError(
                f"{self._name} {error}: ember's cannot stand in, use mlx-lm's own caches"
            ) from error
        return Appended(recorders=recorders, entered=next(iter(self._layer.given), None))


def _isolated(model: nn.Module, layers: Iterable[Any], running: _Layer) -> nn.Module:
    ours = {id(layer) for layer in layers if isinstance(layer, nn.Module)}

    def copied(node: Any, inside: bool = False) -> Any:
        if isinstance(node, nn.Module):
            kind: Any = type(node)
            if id(node) in ours:
                kind = _fed_noise(kind, running)
            elif inside and kind in _PROJECTIONS:
                kind = _PROJECTIONS[kind]
            twin, inside = kind.__new__(kind), inside or id(node) in ours
            vars(twin).update(vars(node))
            dict.update(twin, {name: copied(each, inside) for name, each in node.items()})
            return twin
        if isinstance(node, list | tuple):
            return type(node)(copied(each, inside) for each in node)
        if isinstance(node, dict):
            return {name: copied(each, inside) for name, each in node.items()}
        return node

    return copied(model)


def _fed_noise(kind: type[nn.Module], running: _Layer) -> type[nn.Module]:
    """The class of a layer that takes noise for what it is given first."""

    def call(self: nn.Module, *args: Any, **named: Any) -> Any:
        given = args[0] if args else next(iter(named.values()))
        running.given.append(given)
        noise = mx.random.normal(given.shape, dtype=given.dtype, key=mx.random.key(7))

        def unlike(x: Any) -> Any:
            """Noise for what the layers before it computed, in one way or another."""
            return noise if isinstance(x, mx.array) and x.shape == noise.shape else x

        args, named = tuple(map(unlike, args)), {name: unlike(x) for name, x in named.items()}
        running.runs = True
        try:
            return kind.__call__(self, *args, **named)
        finally:
            running.runs = False

    return type(kind.__name__, (kind,), {"__call__": call})


def _scattered(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of a projection that costs nothing: each number that leaves is one that enters.

    Where a number depends on the position, so does what it leaves as; by how much does not hang on
    weights, which need not be read.
    """

    def call(self: nn.Module, x: mx.array) -> mx.array:
        leaving = self["weight"].shape[0]
        scales = mx.random.normal((leaving,), dtype=x.dtype, key=mx.random.key(leaving))
        return x[..., mx.arange(leaving) % x.shape[-1]] * scales

    return type(kind.__name__, (kind,), {"__call__": call})


_PROJECTIONS = {kind: _scattered(kind) for kind in (nn.Linear, nn.QuantizedLinear)}
