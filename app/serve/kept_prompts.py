"""Prompts whose caches are kept for later: in memory between requests, on disk between runs.

Lives on the thread that computes. Knows no running row: how many bytes are left for what is kept
is said by who runs.
"""

import time
from collections.abc import Iterator, Sequence

from mlx_lm.models.cache import LRUPromptCache

from app.engine import Engine
from app.serve.model_provider import DEFAULT
from app.wake.waking import Waking
from kvcache import TwoTierKVCache

# Prompts that are kept at most, however small: each token of one is an object.
_MOST = 64
# Of those that are no system prompts, the newest so many are kept on disk.
_NEWEST = 4
_SYSTEM = "system"


class KeptPrompts(LRUPromptCache):
    """mlx-lm's. engine: of the same plan, which holds nothing. waking: None for no disk."""

    def __init__(self, engine: Engine, most_bytes: int, waking: Waking | None) -> None:
        super().__init__(_MOST, most_bytes)
        self._engine, self._waking = engine, waking

    def beginning(self, tokens: Sequence[int]) -> tuple[list[TwoTierKVCache] | None, int]:
        """Caches of the longest beginning of a prompt that is kept, and how long that is."""
        # The last token is always computed: its logits are needed.
        found, rest = self.fetch_nearest_cache(DEFAULT, tokens[:-1])
        known = len(tokens) - 1 - len(rest)
        if self._waking is None or self._waking.reach(self._engine, tokens) <= known:
            return found, known
        del found
        if woken := self._waking.wake(self._engine, tokens):
            caches = self._engine.exchange(self._engine.empty_caches(), [])
            self.insert_cache(DEFAULT, list(tokens[:woken]), caches, cache_type=_SYSTEM)
        found, rest = self.fetch_nearest_cache(DEFAULT, tokens[:-1])
        return found, len(tokens) - 1 - len(rest)

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

    def _worth_keeping(self) -> Iterator[list[int]]:
        every = {kind: [tokens for _, tokens in lru] for kind, lru in self._lru._lrus.items()}
        yield from reversed(every.pop(_SYSTEM))
        for others in every.values():
            yield from reversed(others[-_NEWEST:])
