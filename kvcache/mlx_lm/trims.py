"""Where mlx-lm takes tokens back: drafts that were not accepted, and prompts that part.

It asks whether caches can be trimmed, and not how far. Ours can by their plan's `slack`, and
raise CacheError for more. So longer drafts are refused before the first token, and of a kept
prompt that parts further back nothing is taken up. Caches of mlx-lm's own meet nothing new.
"""

from collections.abc import Generator, Iterable
from importlib import import_module
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import LRUPromptCache

from kvcache.errors import CacheError
from kvcache.given import integer
from kvcache.two_tier import TwoTierKVCache

# By name: `mlx_lm.generate` is a function where it is looked up as an attribute.
mlx_lm_generate: Any = import_module("mlx_lm.generate")

_stock_step = mlx_lm_generate.speculative_generate_step
_stock_fetch = LRUPromptCache.fetch_nearest_cache


def check_drafts(caches: Iterable[Any], tokens: int) -> None:
    """Raise CacheError where a cache cannot always take back drafts of so many tokens."""
    tokens = integer("tokens", tokens)
    slacks = {cache.plan.sizes.slack for cache in caches if isinstance(cache, TwoTierKVCache)}
    least = min(slacks, default=tokens)
    if least < tokens:
        fewer = f"give num_draft_tokens={least}, or " if least else ""
        raise CacheError(
            f"got drafts of {tokens} tokens, but a cache takes back {least}: {fewer}"
            f"make caches with CacheConfig(slack={tokens})"
        )


def _speculate(
    prompt: mx.array,
    model: nn.Module,
    draft_model: nn.Module,
    *args: Any,
    num_draft_tokens: int = 2,
    prompt_cache: list[Any] | None = None,
    **kwargs: Any,
) -> Generator[tuple[int, mx.array, bool], None, None]:
    """mlx-lm's speculative decoding, once it is known that drafts can be taken back."""
    if prompt_cache is None:
        made = map(mlx_lm_generate.make_prompt_cache, (model, draft_model))
        prompt_cache = [layer for cache in made for layer in cache]
    check_drafts(prompt_cache, num_draft_tokens)
    steps: Generator[tuple[int, mx.array, bool], None, None] = _stock_step(
        prompt,
        model,
        draft_model,
        *args,
        num_draft_tokens=num_draft_tokens,
        prompt_cache=prompt_cache,
        **kwargs,
    )
    return steps


def _fetch(kept: LRUPromptCache, model: Any, tokens: list[int]) -> tuple[Any, list[int]]:
    """What mlx-lm's server has computed of `tokens`, and the rest of them."""
    try:
        found: tuple[Any, list[int]] = _stock_fetch(kept, model, tokens)
    except CacheError:
        return None, tokens
    return found


mlx_lm_generate.speculative_generate_step = _speculate
LRUPromptCache.fetch_nearest_cache = _fetch
