"""One harness for every codec: the same model, texts, reference and questions.

What the f16 cache gives is computed once for each text and kept: log-probabilities of the
scored positions, and the exact keys and last queries of each layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from app.bench.sections.passkey import Passkeys
from app.bench.settings import QUALITY_HOT, QUALITY_SINKS
from app.divergence import Divergence, Reading, compare, join, read
from kvcache import (
    CacheConfig,
    CachePlan,
    KeyMetric,
    TwoTierKVCache,
    make_prompt_cache,
    resolve,
)
from kvcache.reference import Mask
from models.network.llama import Model

# Queries of each layer whose scores are compared.
_QUERIES = 8
_CHUNK = 64


class RecordingCache:
    """A cache that also keeps the last queries that attended to it.

    Not a TwoTierKVCache itself, so that the kernels do not attend past it.
    """

    def __init__(self, cache: TwoTierKVCache) -> None:
        self._cache = cache
        self.queries = mx.zeros((0,))

    @property
    def offset(self) -> int:
        """Position of the next token."""
        return self._cache.offset

    def attend(
        self, q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Mask = "causal"
    ) -> mx.array:
        """The cache's own."""
        self.queries = q.astype(mx.float32)
        return self._cache.attend(q, k, v, scale=scale, mask=mask)


@dataclass(frozen=True, kw_only=True)
class Tiers:
    """What a row varies of a cache; the fields of `CacheConfig`."""

    keys: str
    values: str
    hot: int = QUALITY_HOT
    sinks: int = QUALITY_SINKS
    block: int = CacheConfig.block
    by_layer: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Exact:
    """What the f16 cache gives of a text's `ids`. keys, queries: of each layer.

    skip: first positions that are not scored.
    """

    ids: Sequence[int]
    skip: int
    readings: Sequence[Reading]
    keys: Sequence[mx.array]  # [1, Hkv, S, D]
    queries: Sequence[mx.array]  # [1, Hq, L, D]


class Harness:
    """longest: tokens of the longest text. metric: by which keys are encoded.

    passkeys: the questions for a hot tier of so many tokens.
    """

    def __init__(
        self,
        model: Model,
        passkeys: Callable[[int], Passkeys],
        *,
        config: CacheConfig,
        longest: int,
        metric: KeyMetric | None,
    ) -> None:
        self.model, self.metric = model, metric
        self._passkeys = passkeys
        # Nothing is let go, of text or questions: what is measured is the codecs' loss alone.
        slack = 16 * config.block + 1024
        self._config = replace(config, max_tokens=longest + slack, beyond_context=True)
        self._score_errors: dict[tuple[tuple[str, ...], int, int, int], float] = {}
        self._f16_recalls: dict[int, float] = {}

    def plan(self, tiers: Tiers) -> CachePlan:
        """The tiers that are measured."""
        return resolve(replace(self._config, **vars(tiers)), self.model.shape)

    def exact(self, ids: Sequence[int], *, skip: int) -> Exact:
        """Read a text under the f16 cache, whose first `skip` positions are not scored."""
        plan = self.plan(Tiers(keys="f16", values="f16"))
        caches = make_prompt_cache(self.model, plan.config, metric=self.metric)
        readings = list(read(self.model, caches, ids, chunk=self._chunk, skip=skip))
        keys = [cache.keys() for cache in caches]
        for cache in caches:
            cache.rewind(_QUERIES)
        recording = [RecordingCache(cache) for cache in caches]
        self.model.hidden(mx.array([ids[-1 - _QUERIES : -1]]), recording)
        queries = [cache.queries for cache in recording]
        mx.eval(keys, queries)
        return Exact(ids=ids, skip=skip, readings=readings, keys=keys, queries=queries)

    def divergence(self, plan: CachePlan, exact: Exact) -> Divergence:
        """How far a cache moves the model, at every scored position of the text."""
        caches = make_prompt_cache(self.model, plan.config, metric=self.metric)
        found = read(self.model, caches, exact.ids, chunk=self._chunk, skip=exact.skip)
        return join([compare(*pair) for pair in zip(found, exact.readings, strict=True)])

    def recall(self, plan: CachePlan) -> float:
        """The share of passkeys that are recalled from the cold tier."""
        passkeys = self._passkeys(plan.config.hot)
        told = passkeys.answers[0][0] - 1
        caches = make_prompt_cache(self.model, plan.config, metric=self.metric)
        found = read(self.model, caches, passkeys.ids, chunk=self._chunk, skip=told)
        agrees = [part.log_probabilities.argmax(axis=-1) == part.targets for part in found]
        return passkeys.recalled(np.concatenate([np.zeros(told, bool), *agrees]))

    def f16_recall(self, plan: CachePlan) -> float:
        """The same questions under the f16 cache."""
        hot = plan.config.hot
        if hot not in self._f16_recalls:
            f16 = self.plan(Tiers(keys="f16", values="f16", hot=hot, sinks=plan.config.sinks))
            self._f16_recalls[hot] = self.recall(f16)
        return self._f16_recalls[hot]

    def score_error(self, plan: CachePlan, exact: Exact) -> float:
        """Root mean square error of the scaled scores against cold keys, over all layers."""
        codecs = tuple(plan.layer(index).keys for index in range(plan.shape.layers))
        if set(codecs) == {"f16"}:
            return 0.0
        key = (codecs, plan.sizes.hot, plan.sizes.pinned, plan.sizes.block)
        if key not in self._score_errors:
            squares = [
                square
                for index, (keys, queries) in enumerate(zip(exact.keys, exact.queries, strict=True))
                if (square := self._squared_error(plan, index, keys, queries)) is not None
            ]
            self._score_errors[key] = float(np.sqrt(np.mean(squares or [0.0])))
        return self._score_errors[key]

    def _squared_error(
        self, plan: CachePlan, layer: int, keys: mx.array, queries: mx.array
    ) -> float | None:
        """Mean square of score errors of one layer: the very same keys, encoded and exact.

        None where it encodes none of them.
        """
        scale = keys.shape[-1] ** -0.5
        found = []
        own = plan.layer(layer)
        metric = None if self.metric is None else self.metric.layers[layer]
        for codec in (own.keys, "f16"):
            cache = TwoTierKVCache(replace(own, keys=codec, values="f16"), metric=metric)
            cache.append(keys, keys)
            pinned, cold = cache.ledger.pinned, cache.ledger.cold
            found.append(cache.scores(queries, scale=scale)[..., pinned : pinned + cold])
        if not found[0].size:
            return None
        return float(np.asarray(mx.mean(mx.square(found[0] - found[1]))))

    @property
    def _chunk(self) -> int:
        return min(self._config.block, _CHUNK)
