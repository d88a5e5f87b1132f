"""A layer's tiers of so many made-up tokens, as a chat's cache holds them."""

from dataclasses import dataclass
from functools import cached_property
from math import sqrt

import mlx.core as mx

from kvcache import Backend, CacheConfig
from kvcache.codecs import codec
from kvcache.gpu import TierDecoder
from kvcache.sight import Sight
from kvcache.snapshot import Bounds, ColdBlocks, Snapshot, Tokens
from kvcache.tiers.gpu import GpuTiers
from kvcache.tiers.ledger import TierSizes
from kvcache.tiers.plan import LayerPlan
from tests.metal.check.sizes import Shape
from tests.metal.check.timing import Step


@dataclass(frozen=True)
class Layer:
    """Pinned, cold and hot tokens in the default codecs and sizes, `tokens` in all."""

    shape: Shape
    tokens: int

    @cached_property
    def held(self) -> Snapshot:
        """Without new tokens: those are the hot ring's last."""
        shape, config = self.shape, CacheConfig()
        codecs = codec(config.keys), codec(config.values)
        blocks = max(1, (self.tokens - config.sinks - config.hot) // config.block)
        hot = max(1, self.tokens - config.sinks - blocks * config.block)
        size = (1, shape.kv_heads, config.block, shape.dim)
        keys, values = (
            {
                name: mx.repeat(part[None], blocks, axis=0)
                for name, part in each.encode(mx.random.normal(size)).parts.items()
            }
            for each in codecs
        )
        found = Snapshot(
            bounds=Bounds(pinned=config.sinks, blocks=blocks, block=config.block, hot=hot),
            cold=ColdBlocks(
                codecs=codecs, segments=[(keys, values)], slots=[blocks], dim=shape.dim
            ),
            pinned=self._unencoded(config.sinks),
            hot=self._unencoded(hot),
        )
        mx.eval(found.cold.segments, found.pinned, found.hot)
        return found

    @property
    def cache_bytes(self) -> int:
        """Keys and values."""
        held = self.held
        parts = [part for pair in held.cold.segments for parts in pair for part in parts.values()]
        unencoded = [*(held.pinned or ()), *(held.hot or ())]
        return sum(array.nbytes for array in (*parts, *unencoded))

    def queries(self, new: int = 1) -> mx.array:
        """[1, Hq, new, D]."""
        heads = self.shape.kv_heads * self.shape.group
        return mx.random.normal((1, heads, new, self.shape.dim)).astype(mx.float16)

    def attending(self, decoder: TierDecoder, new: int = 1) -> Step:
        """What takes queries [1, Hq, new, D] and gives all launches' result, of the same shape."""
        sizes = TierSizes(pinned=0, hot=0, block=1, slots=0)  # nothing is appended to them
        plan = LayerPlan.of(CacheConfig(backend=Backend.REFERENCE), sizes, layer=0)
        tiers, held = GpuTiers(plan, decoder=decoder), self.held
        total, pinned = held.bounds.new_position, held.bounds.pinned
        sight = Sight(position=total - new, gone=(0,) * new, total=total, pinned=pinned)
        return lambda q: tiers.attend_snapshot(q, held, sight, 1 / sqrt(self.shape.dim))

    def _unencoded(self, count: int) -> Tokens[mx.array]:
        size = (1, self.shape.kv_heads, count, self.shape.dim)
        return Tokens(*(mx.random.normal(size).astype(mx.float16) for _ in "kv"))
