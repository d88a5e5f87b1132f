"""What an mlx-lm model's layers should see once tokens are let go, from the model itself.

Every token is kept. Shown are the sinks and the newest ones, as tiers of given sizes hold
them; where sinks stay near, their keys are those that the model makes of the same tokens
right before the window, so that nothing here knows how a layer turns its keys.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import CacheList, KVCache, make_prompt_cache

from kvcache import TwoTierKVCache
from kvcache.tiers.ledger import TierSizes


def leaves(caches: Sequence[Any]) -> Iterator[Any]:
    """The caches, those in lists of several one by one."""
    for cache in caches:
        yield from leaves(cache.caches) if isinstance(cache, CacheList) else [cache]


def ours_of(caches: Sequence[Any]) -> list[TwoTierKVCache]:
    """Those of them that are ember's."""
    return [cache for cache in leaves(caches) if isinstance(cache, TwoTierKVCache)]


def naive_caches(model: Any, caches: Sequence[Any], words: Sequence[int]) -> list[Any]:
    """What shows, a token at a time, what `caches` of ours should, of a text that begins so."""
    layers = list(leaves(caches))
    whole = [cache for cache in ours_of(caches) if cache.plan.sizes.window is None]
    near = {gone: _sinks_at(model, layers, gone, words) for gone in _distances(whole, len(words))}

    def naive(place: int, cache: Any) -> Any:
        layer = layers[place]
        if layer not in whole:
            return cache
        turned = layer.stats().sinks_turned
        keys = {gone: sinks[place].keys for gone, sinks in near.items() if turned}
        return _Shown(layer.plan.sizes, keys)

    return _replaced(make_prompt_cache(model), naive)


def _distances(whole: Sequence[TwoTierKVCache], words: int) -> range:
    """How many tokens can be gone."""
    block = whole[0].plan.sizes.block if whole else 1
    return range(block, words if whole else 0, block)


def _sinks_at(model: Any, layers: Sequence[Any], gone: int, words: Sequence[int]) -> list[Any]:
    """The layers' sinks as if they came after `gone` other tokens, which nothing sees."""

    def late(place: int, cache: Any) -> Any:
        return _Late(gone) if isinstance(layers[place], TwoTierKVCache) else cache

    caches = _replaced(make_prompt_cache(model), late)
    pinned = max(layer.plan.sizes.pinned for layer in ours_of(layers))
    for word in words[:pinned]:
        model(mx.array([[word]]), cache=caches)
    return list(leaves(caches))


def _replaced(caches: Sequence[Any], by: Callable[[int, Any], Any]) -> list[Any]:
    """The caches, each with another in its place."""
    places = iter(range(len(list(leaves(caches)))))

    def each(cache: Any) -> Any:
        if isinstance(cache, CacheList):
            return CacheList(*map(each, cache.caches))
        return by(next(places), cache)

    return [each(cache) for cache in caches]


class _Late(KVCache):  # type: ignore[misc]  # mlx-lm tells no types
    """Holds what is appended, one by one, as if others had come before."""

    def __init__(self, position: int) -> None:
        super().__init__()
        self.offset = position
        self.held: list[tuple[mx.array, mx.array]] = []

    @property
    def keys(self) -> mx.array | None:
        return mx.concatenate([k for k, _ in self.held], axis=2) if self.held else None

    @keys.setter
    def keys(self, _none: None) -> None: ...

    def update_and_fetch(self, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        self.held.append((k, v))
        self.offset += 1
        keys, values = (mx.concatenate(x, axis=2) for x in zip(*self.held, strict=True))
        return keys, values

    def make_mask(self, n: int, return_array: bool = False, window_size: int | None = None) -> Any:
        hides = return_array or window_size is not None
        return mx.array([[True] * (len(self.held) + n)]) if hides else None


class _Shown(KVCache):  # type: ignore[misc]  # mlx-lm tells no types
    """Holds all tokens and shows what tiers of these sizes hold of them.

    near: keys of the sinks for so many tokens gone; without them, they are where they came.
    """

    def __init__(self, sizes: TierSizes, near: dict[int, mx.array]) -> None:
        super().__init__()
        self.sizes, self.near = sizes, near

    @property
    def gone(self) -> int:
        """Tokens let go before the next one."""
        sizes = self.sizes
        left: int = (self.offset - sizes.pinned - sizes.hot) // sizes.block - sizes.slots
        return max(0, left) * sizes.block

    def update_and_fetch(self, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        gone, pinned = self.gone, self.sizes.pinned
        keys, values = super().update_and_fetch(k, v)
        if not gone:
            return keys, values
        sinks = self.near[gone] if self.near else keys[:, :, :pinned]
        kept = values[:, :, :pinned], values[:, :, pinned + gone :]
        return mx.concatenate([sinks, keys[:, :, pinned + gone :]], axis=2), mx.concatenate(
            kept, axis=2
        )

    def make_mask(self, n: int, return_array: bool = False, window_size: int | None = None) -> Any:
        gone, pinned = self.gone, self.sizes.pinned
        if not gone:
            return super().make_mask(n, return_array=return_array, window_size=window_size)
        assert n == 1, "what is gone differs from token to token"
        if not return_array and window_size is None:
            return None
        held = [*range(pinned), *range(pinned + gone, self.offset + 1)]
        window = window_size or self.offset + 1
        return mx.array([[self.offset < position + window for position in held]])
