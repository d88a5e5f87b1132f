"""Several chats of one model in one number of bytes."""

from collections.abc import Sequence
from typing import Any

import mlx.nn as nn

from kvcache.config import CacheConfig, parse_bytes
from kvcache.errors import CacheError
from kvcache.given import integer, optional, refused
from kvcache.key_metric import KeyMetric
from kvcache.prompt_cache import ShapedModel, make_prompt_cache
from kvcache.tiers.plan import ModelShape
from kvcache.tiers.share import Purse, Share
from kvcache.two_tier import TwoTierKVCache


class SharedBudget:
    """Bytes for the caches of any number of chats ("64MiB" or a number).

        shared = SharedBudget("256MiB")
        cache = shared.make_prompt_cache(model)     for each chat

    What is guaranteed, on all backends and from any threads:

    - The caches together never take more than the budget; while one of its layers grows, a
      copy of that layer is beside it. A chat for whose unencoded tiers there is no room is refused.
    - Encoded blocks are drawn as chats grow. Where none is left, the chat that grows lets its
      own oldest block go, and no other chat changes. It grows on once there are bytes again.
    - A chat's bytes go back when its caches are dropped, or by `release`.

    A cache of a shared budget takes one sequence, and keeps its policy. A copy of it, or one that
    was saved, is not of the budget, and has room for all that its own `config` asks for.
    """

    def __init__(self, budget: str | int) -> None:
        size = (
            parse_bytes(budget) if isinstance(budget, str) else integer("budget", budget, least=1)
        )
        self._purse = Purse(size)

    @property
    def budget(self) -> int:
        """Bytes of all chats at most."""
        return self._purse.budget

    @property
    def taken(self) -> int:
        """Bytes that chats have, used or not."""
        return self._purse.taken

    @property
    def free(self) -> int:
        """Bytes that chats can still draw."""
        return self._purse.budget - self._purse.taken

    @property
    def chats(self) -> int:
        """Chats that have bytes of it."""
        return self._purse.chats

    def __repr__(self) -> str:
        return f"SharedBudget({self.taken} of {self.budget} bytes taken by {self.chats} chats)"

    def make_prompt_cache(
        self,
        model: ShapedModel | nn.Module,
        config: CacheConfig | None = None,
        *,
        metric: KeyMetric | None = None,
    ) -> list[Any]:
        """The caches of a new chat, as `kvcache.make_prompt_cache` makes them.

        Those that a model of mlx-lm's keeps of its own are not of the budget.

        config: with `max_tokens` or the model's context as its bound, and no budget of its own.
        Raises CacheError where what a chat holds unencoded does not fit beside the others.
        """
        asked = optional("config", config, CacheConfig)
        if asked is not None and asked.budget is not None:
            raise CacheError("got a budget of its own in config, expected none: it shares this one")
        caches = make_prompt_cache(model, config, metric=metric)
        shape = _shape_of(model)
        ours = [cache for cache in caches if isinstance(cache, TwoTierKVCache)]
        if len(ours) != shape.layers:
            raise CacheError(
                "got a model with several caches in a layer, which share no budget: give its chats "
                "budgets of their own (CacheConfig.for_budget)"
            )
        fixed, block = _bytes(ours, shape)
        if not self._purse.take(1, fixed):
            raise CacheError(
                f"a chat holds {fixed} bytes unencoded, but {self.free} of {self.budget} are free: "
                "release a chat, or give smaller hot, sinks, keep or block, or a larger budget"
            )
        share = Share(self._purse, fixed=fixed, block=block)
        for cache in ours:
            cache.draw_on(share)
        return caches

    def release(self, caches: Sequence[Any]) -> None:
        """End a chat: forget its tokens and give its bytes back. It may be of this budget or none.

        The caches are as new then, and no longer of this budget.
        """
        given: object = caches
        if not isinstance(given, list | tuple):
            raise refused("caches", given, "the caches of a chat")
        ours = [cache for cache in given if isinstance(cache, TwoTierKVCache)]
        if given and not ours:
            raise refused("caches", given, "the caches of a chat")
        for cache in ours:
            cache.leave_share()


def _shape_of(model: ShapedModel | nn.Module) -> ModelShape:
    if isinstance(model, ShapedModel):
        return model.shape
    from kvcache import mlx_lm

    return mlx_lm.shape_of(model)


def _bytes(caches: Sequence[TwoTierKVCache], shape: ModelShape) -> tuple[int, int]:
    """What is held in any case, and a block in all layers that grow."""
    like, fixed, block = (1, shape.kv_heads, shape.head_dim), 0, 0
    for plan in (cache.plan for cache in caches):
        sizes, of_block = plan.sizes, plan.block_bytes(like)
        fixed += (sizes.pinned + sizes.hot_memory) * plan.token_bytes(like)
        fixed += sizes.cold_memory * of_block
        if sizes.window is None:
            fixed -= sizes.slots * of_block
            block += of_block
    return fixed, block
