"""Times ember's own network and cache."""

from collections.abc import Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from app.bench.engines.case import NO_CACHE, WARM_UP, Case, Measurement
from app.bench.engines.queued import QueuedTokens
from app.bench.engines.timing import time_case
from app.engine import prefill_step
from app.layer_losses import with_kv
from app.rss import peak_rss
from kvcache import Backend, CacheConfig, TwoTierKVCache, resolve, warm_up
from kvcache.config import on_gpu
from kvcache.native.library import library
from kvcache.prompt_cache import from_plan
from kvcache.stats import sum_layers
from models import load
from models.calibrate import key_metric
from models.loader import activation_dtype
from models.network.llama import Model


class Run:
    """A model and its caches. seen: [B, n], the tokens so far; not those that were queued.

    queues: generate as on a GPU, with one wait a token.
    """

    def __init__(
        self,
        case: Case,
        model: Model,
        cache: Sequence[TwoTierKVCache],
        step: int,
        *,
        queues: bool = False,
    ) -> None:
        self._case, self._model, self._cache, self._step = case, model, cache, step
        self._queues = queues and case.kv != NO_CACHE
        self._queued: QueuedTokens | None = None
        self._logits = mx.zeros((case.batch, model.vocabulary))
        self.seen = np.zeros((case.batch, 0), np.int64)

    def read(self, start: int, count: int) -> None:
        """Prompt tokens from position `start` on."""
        rows = self._case.rows(start, count, self._model.vocabulary)
        self._append(np.array(rows, np.int64))

    def advance(self) -> None:
        """The most likely token of each row; without a cache, after all that came before."""
        if self._queues:
            first = mx.argmax(self._logits, axis=-1)
            self._queued = self._queued or QueuedTokens(self._queue, first)
            self._queued.advance()
            return
        token = np.asarray(mx.argmax(self._logits, axis=-1)).astype(np.int64)[:, None]  # [B, 1]
        if self._case.kv == NO_CACHE:
            before = self.seen
            self.forget()
            token = np.concatenate([before, token], axis=1)
        self._append(token)

    def forget(self) -> None:
        """Empty the caches."""
        self._queued = None
        for layer in self._cache:
            layer.clear()
        self.seen = self.seen[:, :0]

    def _append(self, ids: npt.NDArray[np.int64]) -> None:
        for at in range(0, ids.shape[1], self._step):
            hidden = self._model.hidden(mx.array(ids[:, at : at + self._step]), self._cache)
            mx.eval([layer.pending() for layer in self._cache], hidden)
        self._logits = self._model.logits(hidden[:, -1])
        mx.eval(self._logits)
        self._queued = None
        self.seen = np.concatenate([self.seen, ids], axis=1)

    def _queue(self, token: mx.array) -> tuple[mx.array, list[list[mx.array]]]:
        """One more token of each row, nothing waited for."""
        hidden = self._model.hidden(token[:, None], self._cache)
        found = mx.argmax(self._model.logits(hidden[:, -1]), axis=-1)
        return found, [layer.pending() for layer in self._cache]


def measure(case: Case) -> Measurement:
    """Fill the cache to the case's depth, then read and generate."""
    base = CacheConfig(backend=Backend(case.backend), beyond_context=True)
    # Whole blocks, so that nothing that is measured is let go.
    config = replace(base, max_tokens=case.window + base.sinks + base.hot + 2 * base.block)
    loaded = load(case.model, backend=config.backend)
    model, kv = loaded.model, "f16" if case.kv == NO_CACHE else case.kv
    config = with_kv(config, kv, loaded.path, model.shape)
    plan = resolve(config, model.shape)
    metric = key_metric(loaded) if plan.takes_metric else None
    # As at a user's load: no token waits for the GPU's compiler.
    plan = warm_up(
        plan,
        group=model.config.heads // model.shape.kv_heads,
        dtype=activation_dtype(),
        rotation=model.rotations,
        metric=metric,
    )
    cache = from_plan(plan, model.rotations, metric)
    run = Run(case, model, cache, prefill_step(plan.backend), queues=on_gpu())
    run.read(0, min(case.pp, WARM_UP))
    run.forget()
    pp_s, token_s = time_case(case, run.read, run.advance)
    return Measurement(
        backend=plan.backend.value,
        threads=library().threads if plan.backend is Backend.CPU else 0,
        pp_s=pp_s,
        token_s=token_s,
        kv_bytes=sum_layers(layer.stats() for layer in cache).held_bytes,
        peak_rss_bytes=peak_rss(),
    )
