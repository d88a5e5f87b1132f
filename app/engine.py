"""A loaded model with its cache: prompts in, events out.

Runs on the thread that loaded the model (see `inference_thread`). Knows no
command line, no chat and no screen.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event as Flag
from typing import Self

import mlx.core as mx

from app.events import Event, Truncated
from app.generation import Generation, Row
from app.prompt_lookup import PassCosts, PromptLookup
from app.sampling import Sampler, Sampling
from app.transcript import Transcript
from kvcache import (
    Backend,
    CacheConfig,
    CacheError,
    CachePlan,
    CacheStats,
    EmberError,
    RowsKVCache,
    TwoTierKVCache,
    resolve,
    set_policy,
    warm_up,
)
from kvcache.config import on_gpu
from kvcache.prompt_cache import few_are_alike, from_plan, reach, rewind, rows_from_plan
from kvcache.stats import sum_layers
from models.calibrate import key_metric
from models.loader import Accept, LoadedModel, OnProgress, activation_dtype, load
from models.text.thinking import DEFAULT_BUDGET, Thinking

# Tokens per prefill step: long enough for full speed, short enough that a cancel is heard
# soon.
PREFILL_STEP = {Backend.GPU: 512, Backend.CPU: 256, Backend.REFERENCE: 32}


def prefill_step(backend: Backend) -> int:
    """Tokens per step of a resolved backend. Plain MLX is fast too, on a GPU."""
    return PREFILL_STEP[Backend.GPU if on_gpu() else backend]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt, as token ids, and how to answer it.

    truncate: drop the oldest tokens of a prompt that the window cannot hold,
    instead of refusing it.
    continues: the prompt ends inside an answer, which goes on.
    thinking: how it is told from the answer; None takes all for the answer. think_budget: its
    tokens, with which it is ended as the model would; max_tokens and stop are for the answer.
    lookup: draft tokens from the context, which changes none of the answer's.
    allow_loops: go on where the answer says the same again and again.
    """

    prompt: Sequence[int]
    max_tokens: int = 512
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    truncate: bool = False
    continues: bool = False
    thinking: Thinking | None = None
    think_budget: int = DEFAULT_BUDGET
    lookup: bool = True
    allow_loops: bool = True

    def __post_init__(self) -> None:
        if not self.prompt:
            raise EmberError("the prompt is empty: give some text")
        if self.max_tokens < 1:
            raise EmberError(f"got max_tokens={self.max_tokens}, expected at least 1")
        if self.think_budget < 0:
            raise EmberError(f"got think_budget={self.think_budget}, expected 0 or more")


class PromptTooLongError(EmberError):
    """A prompt of which the window cannot hold what the cache has not seen."""

    def __init__(self, length: int, window: int) -> None:
        super().__init__(
            f"the prompt has {length} tokens, but the window holds {window}; "
            "shorten it, raise --ctx or --kv-budget, or drop its oldest tokens with --truncate"
        )
        self.length, self.window = length, window


class Engine:
    """Generates text with one loaded model.

    The cache stays between generations: a prompt that begins as the held tokens
    do is computed only from where it differs.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        config: CacheConfig | None = None,
        *,
        warming: OnProgress | None = None,
        counting: OnProgress | None = None,
    ) -> None:
        """warming: told the steps of the GPU kernels' warm-up, done and all (`warm_up`).

        counting: told the tokens read for the metric by which keys are encoded, and all of
        them, where it is made now (`models.calibrate.key_metric`).
        """
        _wire()
        self.loaded = loaded
        shape = loaded.model.shape
        plan = resolve(config or CacheConfig(), shape)
        loaded.model.set_context(plan.max_tokens)
        self.metric = key_metric(loaded, progress=counting) if plan.takes_metric else None
        began = time.perf_counter()
        plan = self._warmed_up(plan, warming)
        self.warm_up_seconds = time.perf_counter() - began
        self._hold(plan)
        self._costs = PassCosts(measures=True)
        # The cache holds the first `offset` tokens of the last prompt and its growing answer.
        self._seen: tuple[Sequence[int], Sequence[int]] = [], []

    @classmethod
    def load(
        cls,
        model: str | Path,
        config: CacheConfig | None = None,
        *,
        pretokenizer: str | None = None,
        chat_template: str | None = None,
        progress: OnProgress | None = None,
        accept: Accept | None = None,
    ) -> Self:
        """An engine over a model; all but the cache's configuration is as for `loader.load`."""
        config = config or CacheConfig()
        loaded = load(
            model,
            backend=config.backend,
            pretokenizer=pretokenizer,
            chat_template=chat_template,
            progress=progress,
            accept=accept,
        )
        return cls(loaded, config)

    def _hold(self, plan: CachePlan) -> None:
        """Empty caches of this plan."""
        self.plan = plan
        self._caches = self.empty_caches()

    def _warmed_up(self, plan: CachePlan, progress: OnProgress | None) -> CachePlan:
        return warm_up(
            plan,
            group=self.loaded.config.heads // plan.shape.kv_heads,
            dtype=activation_dtype(),
            rotation=self.loaded.model.rotations,
            metric=self.metric,
            progress=progress,
        )

    def adapt(
        self,
        config: CacheConfig,
        *,
        warming: OnProgress | None = None,
        counting: OnProgress | None = None,
    ) -> None:
        """Go on under another configuration: what is held is encoded again, as far as it fits.

        Where it cannot be taken along, as where other first tokens are to stay, nothing is
        held. warming, counting: as for a new engine; what they raise changes nothing, as the
        CacheError of a configuration that cannot be.
        """
        model, metric = self.loaded.model, self.metric
        plan = resolve(config, model.shape)
        ropes = [layer.rope for layer in model.layers]
        model.set_context(plan.max_tokens)
        try:
            if plan.takes_metric and metric is None:
                self.metric = key_metric(self.loaded, progress=counting)
            plan = self._warmed_up(plan, warming)
        except BaseException:  # raised again
            self.metric = metric
            model.set_context(self.plan.max_tokens)
            raise
        if self.metric is not metric or any(
            layer.rope is not rope for layer, rope in zip(model.layers, ropes, strict=True)
        ):
            self._hold(plan)
            self._seen = [], []
            return
        try:
            set_policy(self._caches, plan)
            self.plan = plan
        except CacheError:
            self._hold(plan)
            self._seen = [], []

    def keep(self, tokens: int) -> None:
        """Pin so many first tokens from now on; where that is another number, nothing is held.

        Raises CacheError, and changes nothing, where the window does not hold them.
        """
        if tokens == self.plan.config.keep:
            return
        plan = resolve(replace(self.plan.config, keep=tokens), self.loaded.model.shape)
        # The kernels are those that the load has tried.
        because = self.plan.reference_because
        self._hold(plan.on_reference(because) if because else plan)
        self._seen = [], []

    def forget(self) -> None:
        """Let go of all that the cache holds, and keep its memory."""
        for cache in self._caches:
            cache.clear()
        self._seen = [], []

    def stats(self) -> CacheStats:
        """Tokens and bytes of the cache, over all layers."""
        return sum_layers(self.layer_stats())

    def layer_stats(self) -> list[CacheStats]:
        """Tokens and bytes of each layer's cache."""
        return [cache.stats() for cache in self._caches]

    # -- what was held before, from elsewhere --

    @property
    def caches(self) -> Sequence[TwoTierKVCache]:
        """One per layer. Who fills them says with what (`holds`)."""
        return self._caches

    def held(self) -> list[int]:
        """The ids that the caches have seen, those of tokens that were let go included."""
        # A step that a layer refused leaves the layers before it ahead of the rest.
        offset = min(cache.offset for cache in self._caches)
        return [*self._seen[0], *self._seen[1]][:offset]

    def holds(self, ids: Sequence[int]) -> None:
        """The caches were filled with these tokens, or, for none, are to forget all."""
        if not ids:
            for cache in self._caches:
                cache.clear()
        self._seen = ids, []

    def exchange(
        self, caches: Sequence[TwoTierKVCache], ids: Sequence[int]
    ) -> list[TwoTierKVCache]:
        """Hold these caches of the same plan, which hold these tokens; returns those of before."""
        before, self._caches = self._caches, list(caches)
        self._seen = ids, []
        return before

    def empty_caches(self) -> list[TwoTierKVCache]:
        """Caches of the engine's plan that hold nothing; they are nobody's yet."""
        return from_plan(self.plan, self.loaded.model.rotations, self.metric)

    def reusable(self, prompt: Sequence[int]) -> int:
        """Tokens at the beginning of `prompt` that would not be computed, as things are."""
        ledgers = [cache.ledger for cache in self._caches]
        return reach(ledgers, self.plan, tokens=self.shared(prompt), total=len(prompt))

    # -- answers --

    def fits(self, prompt: Sequence[int], known: int = 0) -> bool:
        """Whether the window holds what of a prompt the cache has not seen.

        A chat that goes on may be longer than the window. known: tokens at the beginning of the
        prompt that the cache could be made to have seen.
        """
        return len(prompt) - max(known, self.shared(prompt)) <= self.plan.max_tokens

    def room(self, max_tokens: int) -> int:
        """Tokens of a prompt that leave an answer its room, at most half of the window."""
        window = self.plan.max_tokens
        return window - min(max_tokens, window // 2)

    def check(self, request: Request) -> None:
        """Raise PromptTooLongError where an empty cache cannot take the prompt."""
        self._fit(request, held=0)

    def generate(self, request: Request, cancel: Flag | None = None) -> Iterator[Event]:
        """Answer one prompt; the last event is `Finished`.

        `cancel` may be set from any thread, also during prefill; what was
        computed is kept. Raises PromptTooLongError.
        """
        shared = self.shared(request.prompt)
        prompt = self._fit(request, held=shared)
        if dropped := len(request.prompt) - len(prompt):
            yield Truncated(kept=len(prompt), dropped=dropped)
            shared = self.shared(prompt)
        reused = rewind(self._caches, self.plan, tokens=shared, total=len(prompt))
        row = self._row(0, prompt, request, reused)
        self._seen = prompt, row.transcript.tokens
        sampler = self._sampler(request.sampling, [prompt])
        lookup = self._lookup(prompt) if request.lookup else None
        yield from self._generation(self._caches, [row], sampler, cancel, lookup).events()

    def generate_batch(
        self, requests: Sequence[Request], cancel: Flag | None = None
    ) -> Iterator[Event]:
        """Answer several prompts of any lengths at once; each row ends with `Finished`.

        Rows share the sampling settings of the first request. The cache of the
        batch is its own; the one of `generate` stays as it is.
        """
        prompts = [self._fit(request, held=0) for request in requests]
        longest = max(len(prompt) for prompt in prompts)
        padding = [longest - len(prompt) for prompt in prompts]
        rows = [
            self._row(index, prompt, request, reused=0)
            for index, (prompt, request) in enumerate(zip(prompts, requests, strict=True))
        ]
        rotations = self.loaded.model.rotations
        caches = rows_from_plan(self.plan, rotations, self.metric, left_padding=padding)
        sampler = self._sampler(requests[0].sampling, prompts)
        yield from self._generation(caches, rows, sampler, cancel).events()

    def _generation(
        self,
        caches: Sequence[TwoTierKVCache] | Sequence[RowsKVCache],
        rows: Sequence[Row],
        sampler: Sampler,
        cancel: Flag | None,
        lookup: PromptLookup | None = None,
    ) -> Generation:
        return Generation(
            self.loaded.model,
            caches,
            rows,
            sampler,
            prefill_step=self.prefill_step(),
            pipelined=self._is_pipelined(),
            cancel=self._flag(cancel or Flag()),
            lookup=lookup,
        )

    def _lookup(self, prompt: Sequence[int]) -> PromptLookup | None:
        """Drafts for the answer to a prompt, if any."""
        return PromptLookup(prompt, self._pass_costs()) if self._can_draft() else None

    # -- what ranks of one model agree on, see `RankEngine` --

    def prefill_step(self) -> int:
        """Tokens of a prompt that are read at once."""
        return prefill_step(self.plan.backend)

    def _is_pipelined(self) -> bool:
        """A CPU gains nothing from queueing a token before the last one is read."""
        return on_gpu()

    def _flag(self, cancel: Flag) -> Flag:
        return cancel

    def _sampler(self, sampling: Sampling, prompts: Sequence[Sequence[int]]) -> Sampler:
        return Sampler(sampling, prompts)

    def _can_draft(self) -> bool:
        """Not where plain MLX computes, the oracle."""
        return self.plan.backend is Backend.GPU or few_are_alike(self.plan)

    def _pass_costs(self) -> PassCosts:
        """The same prompt gives the same answer: lengths of drafts follow the clock only where
        rows of a pass are to the last bit what they are alone."""
        return PassCosts(measures=False) if self.plan.backend is Backend.GPU else self._costs

    def _row(self, index: int, prompt: Sequence[int], request: Request, reused: int) -> Row:
        transcript = Transcript(
            self.loaded.tokenizer,
            prompt_tokens=len(prompt),
            reused_tokens=reused,
            max_tokens=request.max_tokens,
            stop=request.stop,
            continuing=request.continues,
            thinking=request.thinking,
            think_budget=request.think_budget,
            allow_loops=request.allow_loops,
        )
        return Row(index=index, prompt=prompt, transcript=transcript)

    def _fit(self, request: Request, *, held: int) -> Sequence[int]:
        """The prompt, or its newest part. `held`: tokens that the cache has seen already.

        A chat that goes on may be longer than the window: only what is new to the
        cache has to fit.
        """
        window, length = self.plan.max_tokens, len(request.prompt)
        if length - held <= window:
            return request.prompt
        if not request.truncate:
            raise PromptTooLongError(length, window)
        return request.prompt[-max(self.room(request.max_tokens), 1) :]

    def shared(self, prompt: Sequence[int]) -> int:
        """Tokens at the beginning of `prompt` that the cache has seen."""
        seen = self.held()
        # The last token is always computed: its logits are needed.
        new = list(prompt[:-1])
        length = min(len(seen), len(new))
        if seen[:length] == new[:length]:
            return length
        return next(at for at in range(length) if seen[at] != new[at])


def _wire() -> None:
    """Keep macOS from paging weights out between two answers: a limit, it takes nothing."""
    if mx.metal.is_available():
        mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))
