"""Key-value caches for MLX models, and attention over them.

Knows no tokenizer, no file and no user interface. `Rotation`, of a rope, keeps the name that
scripts import: elsewhere that is a turn, and a rotation is a Hadamard one.
"""

from kvcache.attention import attend
from kvcache.codecs import codec
from kvcache.config import Backend, CacheConfig, HotDtype
from kvcache.errors import CacheError, EmberError
from kvcache.head_view import HeadView
from kvcache.key_metric import KeyMetric
from kvcache.prompt_cache import load_prompt_cache, make_prompt_cache, set_policy
from kvcache.rows import RowsKVCache
from kvcache.stats import CacheStats
from kvcache.tiers.plan import CachePlan, ModelShape, resolve
from kvcache.turn import Rotation
from kvcache.two_tier import TwoTierKVCache
from kvcache.unencoded.block_pool import BlockPool, PoolStats
from kvcache.unencoded.dynamic import DynamicKVCache
from kvcache.unencoded.paged import PagedKVCache
from kvcache.warm_up import warm_up

__all__ = [
    "Backend",
    "BlockPool",
    "CacheConfig",
    "CacheError",
    "CachePlan",
    "CacheStats",
    "DynamicKVCache",
    "EmberError",
    "HeadView",
    "HotDtype",
    "KeyMetric",
    "ModelShape",
    "PagedKVCache",
    "PoolStats",
    "Rotation",
    "RowsKVCache",
    "TwoTierKVCache",
    "attend",
    "codec",
    "load_prompt_cache",
    "make_prompt_cache",
    "resolve",
    "set_policy",
    "warm_up",
]
