"""ember's cache in stock mlx-lm: shapes and ropes of its models, injection, attention.

    cache = make_prompt_cache(model, config)        works in every mlx-lm loop as it is
    describe(cache)                                 which layers are bounded by what
    inject(model, config)                           mlx-lm's factory makes it for this model
    install()                                       attention reads the tiers themselves
    install(config)                                 and every cache that mlx-lm makes is ours
    load_prompt_cache(path)                         mlx-lm's, for files that may be damaged

Ours replace the caches of layers that keep keys and values; state spaces, chunks and the like
stay mlx-lm's. A model that ours cannot hold, such as one whose values are shorter than its
keys, is refused by name before it computes anything. What a layer appends and how it turns
its keys is found by running it (`probe`, `ropes`), not from a list of models.

Importing this package lets mlx-lm's `load_prompt_cache` find our caches, and its drafts be
refused that they cannot take back (`trims`). Without `install`, attention runs over what
`update_and_fetch` returns: decoded keys and values, correct in any model, at the memory of an
f16 window. mlx-lm's batch generation and its server batch our caches as rows (`kvcache.rows`).
"""

from kvcache.mlx_lm.factory import describe, inject, make_prompt_cache
from kvcache.mlx_lm.hook import install, uninstall
from kvcache.mlx_lm.load import load_prompt_cache
from kvcache.mlx_lm.model_shape import shape_of
from kvcache.mlx_lm.ropes import rotation_of, rotations_of
from kvcache.mlx_lm.trims import check_drafts

__all__ = [
    "check_drafts",
    "describe",
    "inject",
    "install",
    "load_prompt_cache",
    "make_prompt_cache",
    "rotation_of",
    "rotations_of",
    "shape_of",
    "uninstall",
]
