"""Key-value caches for MLX models, and attention over them.

Knows no tokenizer, no file and no user interface.
"""

from kvcache.attention import attend
from kvcache.block_pool import BlockPool, PoolStats
from kvcache.codecs import codec
from kvcache.config import Backend, CacheConfig, HotDtype
from kvcache.dynamic import DynamicKVCache
from kvcache.errors import CacheError, EmberError
from kvcache.head_view import HeadView
from kvcache.paged import PagedKVCache
from kvcache.plan import CachePlan, ModelShape, resolve
from kvcache.prompt_cache import make_prompt_cache, set_policy
from kvcache.rotation import Rotation
from kvcache.rows import RowsKVCache
from kvcache.stats import CacheStats
from kvcache.two_tier import TwoTierKVCache
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
    "ModelShape",
    "PagedKVCache",
    "PoolStats",
    "Rotation",
    "RowsKVCache",
    "TwoTierKVCache",
    "attend",
    "codec",
    "make_prompt_cache",
    "resolve",
    "set_policy",
    "warm_up",
]
