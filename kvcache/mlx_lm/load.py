"""Caches from files that mlx-lm saved, by its own reader."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.models.cache as mlx_lm_cache

from kvcache.errors import CacheError, reason
from kvcache.two_tier import TwoTierKVCache
from kvcache.unencoded.dynamic import DynamicKVCache
from kvcache.unencoded.paged import PagedKVCache

# Of a layer's or an array's number in a saved cache.
_PLACE_DIGITS = 5
# What mlx-lm's reader of saved caches raises of damage.
_FAULTS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)

# load_prompt_cache looks its classes up among these.
for _class in (TwoTierKVCache, DynamicKVCache, PagedKVCache):
    setattr(mlx_lm_cache, _class.__name__, _class)


def load_prompt_cache(path: Path | str) -> list[Any]:
    """The caches of a file of mlx-lm's `save_prompt_cache`, which may be damaged.

    mlx-lm's own reader makes lists as long as a number in the file says, and raises
    whatever it meets. Raises CacheError instead, for what is no such file too.
    """
    try:
        arrays, texts = mx.load(str(path), return_metadata=True)
        places = (part for name in (*arrays, *texts) for part in name.split("."))
        if any(part.isdecimal() and len(part) > _PLACE_DIGITS for part in places):
            raise CacheError(f"{path} is damaged: it names places that no saved cache has")
        caches: list[Any] = mlx_lm_cache.load_prompt_cache(str(path))
    except _FAULTS as error:
        raise CacheError(f"{path} is no saved cache, or a damaged one ({reason(error)})") from error
    return caches
