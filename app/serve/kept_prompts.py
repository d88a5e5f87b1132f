"""Prompts whose caches are kept for later: in memory between requests, on disk between runs.

Lives on the thread that computes. Knows no running row: how many bytes are left for what is kept
is said by who runs.
"""

import time
from collections.abc import Iterator, Sequence
from copy import deepcopy

from mlx_lm.models.cache import LRUPromptCache

from app.engine import Engine
from app.serve.model_provider import DEFAULT
from app.wake.waking import Waking
from kvcache import TwoTierKVCache
from kvcache.prompt_cache import reach, rewind

# Prompts that are kept at most, however small: each token of one is an object.
_MOST = 64
# Of those that are no system prompts, the newest so many are kept on disk.
_NEWEST = 4
_SYSTEM = "system"
# What of a prompt that goes another way is worth going back to, in tokens: the newest of it are
# encoded already then, as they would not be in a cache that was given it alone.
_WORTH = 128


class KeptPrompts(LRUPromptCache):
    """mlx-lm's. engine: of the same plan, which holds nothing. waking: None for no disk."""

    def __init__(self, engine: Engine, most_bytes: int, waking: Waking | None) -> None:
        super().__init__(_MOST, most_bytes)
        self._engine, self._waking = engine, waking

    def beginning(self, tokens: Sequence[int]) -> tuple[list[TwoTierKVCache] | None, int]:
        """Caches of the longest beginning of a prompt that is kept, and how long that is."""
        found, known = self._in_memory(tokens)
        if self._waking is None or self._waking.reach(self._engine, tokens) <= known:
            return found, known
        del found
        if woken := self._waking.wake(self._engine, tokens):
            caches = self._engine.exchange(self._engine.empty_caches(), [])
            self.insert_cache(DEFAULT, list(tokens[:woken]), caches, cache_type=_SYSTEM)
        return self._in_memory(tokens)

    def rest(self, seconds: float) -> None:
        """Keep system prompts on disk, and the newest others, as far as the time lasts."""
        if self._waking is None:
            return
        until = time.monotonic() + seconds
        for tokens in self._worth_keeping():
            caches = self._trie.get(DEFAULT, tokens).prompt_cache
            self._engine.exchange(caches, tokens)
            for _ in self._waking.rest(self._engine):
                if time.monotonic() > until:
                    break
        self._waking.close(max(0.0, until - time.monotonic()))

    def _in_memory(self, tokens: Sequence[int]) -> tuple[list[TwoTierKVCache] | None, int]:
        """The same of what is kept in memory; a copy, of which blocks are shared."""
        # The last token is always computed: its logits are needed.
        asked = tokens[:-1]
        nearest = self._trie.search(DEFAULT, asked)
        least = len(nearest.exact or nearest.shorter or ()) + _WORTH
        shared, total, plan = nearest.common_prefix, len(tokens), self._engine.plan
        if nearest.longer is not None and shared >= least:
            kept = self._trie.get(DEFAULT, nearest.longer).prompt_cache
            ledgers = [cache.ledger for cache in kept]
            if reach(ledgers, plan, tokens=shared, total=total) >= least:
                caches = deepcopy(kept)
                return caches, rewind(caches, plan, tokens=shared, total=total)
        found, rest = self.fetch_nearest_cache(DEFAULT, asked)
        return found, len(asked) - len(rest)

    def _worth_keeping(self) -> Iterator[list[int]]:
        every = {kind: [tokens for _, tokens in lru] for kind, lru in self._lru._lrus.items()}
        yield from reversed(every.pop(_SYSTEM))
        for others in every.values():
            yield from reversed(others[-_NEWEST:])
