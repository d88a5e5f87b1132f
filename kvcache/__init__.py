"""Key-value caches for MLX models in bounded memory. Three calls are what most scripts need:

    cache = make_prompt_cache(model, CacheConfig.for_budget("64MiB"))    one for each layer
    generate_step(prompt, model, prompt_cache=cache)                     mlx-lm's loops, or model()
    print(cache[0])                                                      what is held, in one line

`model` is one of ember's (`models.load`) or of mlx-lm's (`mlx_lm.load`); for mlx-lm's own server
and attention see `kvcache.mlx_lm`. Without a model: `TwoTierKVCache.from_config`, `attend`.
Several chats in one number of bytes: `SharedBudget`; sequences that share a prefix: `BlockPool`
and `PagedKVCache`; a batch of unequal prompts: `make_rows_cache`. What a caller gets wrong raises
`CacheError`, and the cache is as it was.

Knows no tokenizer, no file and no user interface. `Rotation`, of a rope, keeps the name that
scripts import: elsewhere that is a turn, and a rotation is a Hadamard one.
"""

from kvcache.allocation import Losses, allocate
from kvcache.attention import attend
from kvcache.codecs import NAMES as CODECS
from kvcache.codecs import Codec, codec
from kvcache.codecs.base import Encoded
from kvcache.config import DEFAULT_KV, Backend, CacheConfig, HotDtype, parse_bytes
from kvcache.errors import CacheError, EmberError
from kvcache.head_view import HeadView
from kvcache.key_metric import KeyMetric
from kvcache.prompt_cache import (
    load_prompt_cache,
    make_prompt_cache,
    make_rows_cache,
    set_policy,
)
from kvcache.rows import RowsKVCache
from kvcache.shared_budget import SharedBudget
from kvcache.stats import CacheStats, sum_layers
from kvcache.tiers.ledger import TierSizes
from kvcache.tiers.plan import CachePlan, LayerPlan, ModelShape, resolve
from kvcache.turn import Rotation
from kvcache.two_tier import TwoTierKVCache
from kvcache.unencoded.block_pool import BlockPool, PoolStats
from kvcache.unencoded.dynamic import DynamicKVCache
from kvcache.unencoded.paged import PagedKVCache
from kvcache.warm_up import warm_up

__version__ = "0.1.0"

__all__ = [
    "CODECS",
    "DEFAULT_KV",
    "Backend",
    "BlockPool",
    "CacheConfig",
    "CacheError",
    "CachePlan",
    "CacheStats",
    "Codec",
    "DynamicKVCache",
    "EmberError",
    "Encoded",
    "HeadView",
    "HotDtype",
    "KeyMetric",
    "LayerPlan",
    "Losses",
    "ModelShape",
    "PagedKVCache",
    "PoolStats",
    "Rotation",
    "RowsKVCache",
    "SharedBudget",
    "TierSizes",
    "TwoTierKVCache",
    "__version__",
    "allocate",
    "attend",
    "codec",
    "load_prompt_cache",
    "make_prompt_cache",
    "make_rows_cache",
    "parse_bytes",
    "resolve",
    "set_policy",
    "sum_layers",
    "warm_up",
]
