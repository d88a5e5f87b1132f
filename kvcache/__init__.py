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

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvcache.allocation import Losses as Losses
    from kvcache.allocation import allocate as allocate
    from kvcache.attention import attend as attend
    from kvcache.codecs import NAMES
    from kvcache.codecs import Codec as Codec
    from kvcache.codecs import codec as codec
    from kvcache.codecs.base import Encoded as Encoded
    from kvcache.config import DEFAULT_KV as DEFAULT_KV
    from kvcache.config import Backend as Backend
    from kvcache.config import CacheConfig as CacheConfig
    from kvcache.config import HotDtype as HotDtype
    from kvcache.config import parse_bytes as parse_bytes
    from kvcache.errors import CacheError as CacheError
    from kvcache.errors import EmberError as EmberError
    from kvcache.head_view import HeadView as HeadView
    from kvcache.key_metric import KeyMetric as KeyMetric
    from kvcache.prompt_cache import load_prompt_cache as load_prompt_cache
    from kvcache.prompt_cache import make_prompt_cache as make_prompt_cache
    from kvcache.prompt_cache import make_rows_cache as make_rows_cache
    from kvcache.prompt_cache import set_policy as set_policy
    from kvcache.rows import RowsKVCache as RowsKVCache
    from kvcache.rows import allocated_bytes as allocated_bytes
    from kvcache.shared_budget import SharedBudget as SharedBudget
    from kvcache.stats import CacheStats as CacheStats
    from kvcache.stats import sum_layers as sum_layers
    from kvcache.tiers.ledger import TierSizes as TierSizes
    from kvcache.tiers.plan import CachePlan as CachePlan
    from kvcache.tiers.plan import LayerPlan as LayerPlan
    from kvcache.tiers.plan import ModelShape as ModelShape
    from kvcache.tiers.plan import resolve as resolve
    from kvcache.turn import Rotation as Rotation
    from kvcache.two_tier import TwoTierKVCache as TwoTierKVCache
    from kvcache.unencoded.block_pool import BlockPool as BlockPool
    from kvcache.unencoded.block_pool import PoolStats as PoolStats
    from kvcache.unencoded.dynamic import DynamicKVCache as DynamicKVCache
    from kvcache.unencoded.paged import PagedKVCache as PagedKVCache
    from kvcache.warming import warm_up as warm_up

    CODECS = NAMES

__version__ = "0.1.0"

# What is exported, and where it is (there under another name: after a colon). It is imported when
# it is first asked for: whoever wants an error, or a name, does not wait for MLX.
_PLACES = {
    "CODECS": "codecs:NAMES",
    "DEFAULT_KV": "config",
    "Backend": "config",
    "BlockPool": "unencoded.block_pool",
    "CacheConfig": "config",
    "CacheError": "errors",
    "CachePlan": "tiers.plan",
    "CacheStats": "stats",
    "Codec": "codecs",
    "DynamicKVCache": "unencoded.dynamic",
    "EmberError": "errors",
    "Encoded": "codecs.base",
    "HeadView": "head_view",
    "HotDtype": "config",
    "KeyMetric": "key_metric",
    "LayerPlan": "tiers.plan",
    "Losses": "allocation",
    "ModelShape": "tiers.plan",
    "PagedKVCache": "unencoded.paged",
    "PoolStats": "unencoded.block_pool",
    "Rotation": "turn",
    "RowsKVCache": "rows",
    "SharedBudget": "shared_budget",
    "TierSizes": "tiers.ledger",
    "TwoTierKVCache": "two_tier",
    "allocate": "allocation",
    "allocated_bytes": "rows",
    "attend": "attention",
    "codec": "codecs",
    "load_prompt_cache": "prompt_cache",
    "make_prompt_cache": "prompt_cache",
    "make_rows_cache": "prompt_cache",
    "parse_bytes": "config",
    "resolve": "tiers.plan",
    "set_policy": "prompt_cache",
    "sum_layers": "stats",
    "warm_up": "warming",
}
__all__ = ["__version__", *_PLACES]

if not TYPE_CHECKING:  # it would have every name be there

    def __getattr__(name: str) -> Any:
        """What is exported under a name."""
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, there = _PLACES[name].partition(":")
        found = getattr(import_module(f"{__name__}.{module}"), there or name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return __all__
