"""One KV head of a two-tier cache: what it holds and what that costs."""

from dataclasses import dataclass, replace

import mlx.core as mx

from kvcache.errors import CacheError
from kvcache.stats import CacheStats
from kvcache.two_tier import TwoTierKVCache


@dataclass(frozen=True, kw_only=True)
class HeadView:
    """Looks into a cache; follows what it holds."""

    cache: TwoTierKVCache
    head: int

    def keys(self) -> mx.array:
        """The held keys [B, held, D], oldest first. Raises CacheError for no such head."""
        return self._of(self.cache.keys())

    def values(self) -> mx.array:
        """The held values, like `keys`."""
        return self._of(self.cache.values())

    def stats(self) -> CacheStats:
        """The tokens of the cache, and this head's share of its bytes."""
        whole, heads = self.cache.stats(), self.cache.kv_heads
        return replace(
            whole,
            sink_bytes=whole.sink_bytes // heads,
            hot_bytes=whole.hot_bytes // heads,
            cold_bytes=whole.cold_bytes // heads,
            allocated_bytes=whole.allocated_bytes // heads,
            fp16_bytes=whole.fp16_bytes // heads,
        )

    def _of(self, tokens: mx.array) -> mx.array:
        if not 0 <= self.head < tokens.shape[1]:
            raise CacheError(f"got head {self.head}, expected one of {tokens.shape[1]} from 0")
        return tokens[:, self.head]
