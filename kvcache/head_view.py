"""One KV head of a two-tier cache: what it holds, what that costs, and attention over it."""

from dataclasses import dataclass, replace

import mlx.core as mx

from kvcache.errors import CacheError
from kvcache.given import array, instance, integer
from kvcache.reference import Mask
from kvcache.stats import BYTES, CacheStats
from kvcache.two_tier import TwoTierKVCache


@dataclass(frozen=True, kw_only=True)
class HeadView:
    """Looks into a cache; follows what it holds.

    Raises CacheError for a head that the cache has not, here or, where it is not known yet
    how many there are, when it is looked at.
    """

    cache: TwoTierKVCache
    head: int

    def __post_init__(self) -> None:
        instance("cache", self.cache, TwoTierKVCache)
        object.__setattr__(self, "head", integer("head", self.head))
        if not self.cache.empty():
            self._check()

    def keys(self) -> mx.array:
        """The held keys [B, held, D], oldest first. Raises CacheError for no such head."""
        return self._of(self.cache.keys())

    def values(self) -> mx.array:
        """The held values, like `keys`."""
        return self._of(self.cache.values())

    def attend_held(self, q: mx.array, *, scale: float, mask: Mask = "causal") -> mx.array:
        """Attend the head's own queries [B, G, L, D], as `TwoTierKVCache.attend_held` does all."""
        alone = self._among_all(q)
        return self._own(self.cache.attend_held(alone, scale=scale, mask=mask))

    def scores(self, q: mx.array, *, scale: float = 1.0) -> mx.array:
        """Scores [B, G, L, held] of the head's own queries, as `TwoTierKVCache.scores` gives."""
        return self._own(self.cache.scores(self._among_all(q), scale=scale))

    def stats(self) -> CacheStats:
        """The tokens of the cache, and this head's share of its bytes."""
        every, heads = self.cache.stats(), self.cache.kv_heads
        if every.held:
            self._check()
        return replace(every, **{name: getattr(every, name) // heads for name in BYTES})

    def _of(self, tokens: mx.array) -> mx.array:
        self._check()
        return tokens[:, self.head]

    def _check(self) -> None:
        if self.cache.empty():
            raise CacheError("the cache is empty: append keys and values first")
        if self.head >= self.cache.kv_heads:
            raise CacheError(
                f"got head {self.head}, expected one of {self.cache.kv_heads} from 0 on"
            )

    def _among_all(self, q: mx.array) -> mx.array:
        """Queries of all heads [B, Hkv * G, L, D], zero but for this head's."""
        own, heads = array("q", q), self.cache.kv_heads
        self._check()
        if own.ndim != 4:
            raise CacheError(f"got queries {own.shape}, expected [B, G, L, D] of one KV head")
        others = mx.zeros_like(own)
        return mx.concatenate([own if at == self.head else others for at in range(heads)], axis=1)

    def _own(self, rows: mx.array) -> mx.array:
        """This head's of rows [B, Hkv * G, L, ...]."""
        return mx.split(rows, self.cache.kv_heads, axis=1)[self.head]
