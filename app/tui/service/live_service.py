"""`ModelService` over a real engine on the inference thread."""

import threading
import time
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

from app import memory
from app.chat_tokens import ChatTokens, Prompt, system_of
from app.engine import Engine, PromptTooLongError, Request
from app.generation import Event, Finished, TextChunk, ThinkingChunk
from app.inference_thread import LEAVE_SECONDS, InferenceThread
from app.job import Job
from app.kernels import compile_kernels, must_compile
from app.memory import Need
from app.options import LoadOptions
from app.session import COUNTING, load_admitted, load_notes
from app.transcript import Completion
from app.tui.service.contract import (
    AnswerEvent,
    Ask,
    LetGo,
    LoadEvent,
    ModelInfo,
    Prepared,
    TooLong,
    Weight,
)
from app.wake.waking import Waking
from kvcache import CacheConfig
from kvcache.native.build import BuildStoppedError
from kvcache.stats import CacheStats
from models.errors import ModelNotFoundError, RenderStoppedError
from models.finding.fetch import fetch
from models.finding.progress import Progress
from models.finding.source import can_be_fetched, locate
from models.loader import OnProgress
from models.text.tokenized_text import TokenizedText

_STATS_SECONDS = 0.1
_COMPILING = "compiling the kernels (once)"
# What a look at the speed reads and answers, in tokens.
_MEASURED_PROMPT, _MEASURED_ANSWER = 256, 32
_MEASURED_TEXT = "Once upon a time there was a small robot that counted every star it saw. "


class _CancelledError(Exception):
    """Raised inside a load or a download that the user stopped."""


class LiveService:
    """Owns the inference thread, and the engine that lives there.

    keep_system: pin what a conversation under this system prompt begins with;
    None pins no more than the configuration says. hot: the hot tokens that were
    asked for, None for the default. load: for every model. waking: what keeps caches between
    answers and takes them back, None for nothing.
    """

    def __init__(
        self,
        config: CacheConfig,
        *,
        keep_system: str | None = None,
        hot: int | None = None,
        load: LoadOptions | None = None,
        waking: Waking | None = None,
    ) -> None:
        self._waking = waking
        self._config, self._keep_system, self._hot = config, keep_system, hot
        self._load_options = load or LoadOptions()
        self._thread = InferenceThread()
        self._engine: Engine | None = None
        self._chat: ChatTokens | None = None
        self._stats: Sequence[CacheStats] = ()
        # Whether all that the cache holds is kept, as far as it is to be.
        self._rested = True
        # Notes on a prompt that was weighed, told with the next answer.
        self._untold: tuple[str, ...] = ()
        self._cancel = threading.Event()
        self._cancel_fetch = threading.Event()

    def is_here(self, spec: str) -> bool:
        try:
            locate(spec)
        except ModelNotFoundError:
            return not can_be_fetched(spec)
        return True

    def load(self, spec: str) -> Job[LoadEvent]:
        self._cancel = cancel = threading.Event()
        job: Job[LoadEvent] = Job()

        def report(done: int, total: int) -> None:
            if cancel.is_set():
                raise _CancelledError
            job.put(Progress(done_bytes=done, total_bytes=total, label="loading"))

        def warming(done: int, total: int) -> None:
            if cancel.is_set():
                raise _CancelledError
            label = f"compiling the GPU kernels, step {done} of {total}"
            job.put(Progress(done_bytes=0, total_bytes=0, label=label))

        def counting(done: int, total: int) -> None:
            if cancel.is_set():
                raise _CancelledError
            label = f"{COUNTING}, {done} of {total} tokens"
            job.put(Progress(done_bytes=0, total_bytes=0, label=label))

        def work() -> Iterator[LoadEvent]:
            try:
                if must_compile(self._config.backend):
                    job.put(Progress(done_bytes=0, total_bytes=0, label=_COMPILING))
                    compile_kernels(cancel.is_set)
                yield from self._load(spec, job, report, (warming, counting), cancel)
            except (_CancelledError, BuildStoppedError, RenderStoppedError):
                return

        return self._thread.submit(work, job)

    def fetch(self, spec: str) -> Job[Progress]:
        job: Job[Progress] = Job()
        self._cancel_fetch = cancel = threading.Event()

        def report(progress: Progress) -> None:
            if cancel.is_set():
                raise _CancelledError
            job.put(progress)

        def work() -> Iterator[Progress]:
            try:
                fetch(spec, progress=report)
            except _CancelledError:
                return
            yield Progress(done_bytes=1, total_bytes=1, label="done")

        threading.Thread(target=job.run, args=(work,), name="fetch", daemon=True).start()
        return job

    def answer(self, ask: Ask) -> Job[AnswerEvent]:
        self._cancel = cancel = threading.Event()
        return self._thread.submit(lambda: self._answer(ask, cancel))

    def weigh(self, ask: Ask) -> Job[Weight]:
        # Whatever else is asked for comes first.
        cancel = threading.Event()
        return self._thread.submit(lambda: self._weigh(ask, cancel))

    def measure(self) -> Job[Completion]:
        self._cancel = cancel = threading.Event()
        return self._thread.submit(lambda: self._measure(cancel))

    def cancel(self) -> None:
        self._cancel.set()

    def cancel_fetch(self) -> None:
        self._cancel_fetch.set()

    def layer_stats(self) -> Sequence[CacheStats]:
        return self._stats

    def close(self) -> None:
        self.cancel()
        self.cancel_fetch()
        self._thread.submit(self._leave)
        self._thread.close(LEAVE_SECONDS)
        if self._waking is not None:
            self._waking.close(LEAVE_SECONDS)

    # -- on the inference thread --

    def _load(
        self,
        spec: str,
        job: Job[LoadEvent],
        report: OnProgress,
        once: tuple[OnProgress, OnProgress],
        cancel: threading.Event,
    ) -> Iterator[LoadEvent]:
        path = locate(spec)

        def make_room(need: Need) -> None:
            """Two models are in memory together where they fit."""
            held = 0 if self._engine is None else _bytes_of(self._engine)
            if held and not need.fits_beside(held, memory.memory()):
                self._let_go()
                job.put(LetGo())

        loaded, admitted = load_admitted(path, self._config, self._load_options, report, make_room)
        loaded.template.start()
        config, chat = admitted.config, ChatTokens(loaded, self._recall)
        if self._keep_system is not None:
            config = replace(config, keep=chat.system_tokens(self._keep_system or None, cancel))
        warming, counting = once
        engine = Engine(loaded, config, warming=warming, counting=counting)
        told = load_notes(engine, asked=config.backend, hot=self._hot, chat=chat, cancel=cancel)
        notes = (*admitted.notes, *told)
        self._engine, self._chat, self._stats = engine, chat, engine.layer_stats()
        yield _info(engine, chat, spec, path, notes)

    def _answer(self, ask: Ask, cancel: threading.Event) -> Iterator[AnswerEvent]:
        assert self._engine is not None
        assert self._chat is not None
        engine, chat = self._engine, self._chat
        try:
            if self._keep_system is not None:
                system = system_of(ask.messages)
                engine.keep(chat.system_tokens(system, cancel, think=ask.think))
            prompt, woken = self._awake(chat, ask, cancel)
        except RenderStoppedError:
            return
        notes = (*self._untold, *prompt.notes)
        self._untold = ()
        if self._waking is not None:
            notes = (*notes, *self._waking.notes())
        request = Request(
            prompt=prompt.ids,
            max_tokens=ask.max_tokens,
            sampling=ask.sampling,
            stop=ask.stop,
            truncate=ask.cuts,
            continues=ask.continues,
            thinking=prompt.thinking,
            think_budget=ask.think_budget,
            lookup=ask.lookup,
        )
        yield Prepared(
            prompt_tokens=len(prompt.ids),
            ends=prompt.ends,
            dropped=prompt.dropped,
            woken=woken,
            notes=notes,
        )
        try:
            yield from self._followed(engine, chat, engine.generate(request, cancel))
        except PromptTooLongError as error:
            yield TooLong(prompt_tokens=error.length, window=error.window)
        finally:
            self._rested = False
            self._thread.submit(self._rest)

    def _awake(self, chat: ChatTokens, ask: Ask, cancel: threading.Event) -> tuple[Prompt, int]:
        """The prompt, and how many of its tokens were kept on disk and are held now."""
        assert self._engine is not None
        prompt = self._kept(chat, ask, cancel)
        if self._waking is None:
            return prompt, 0
        woken = self._waking.wake(self._engine, prompt.ids)
        if not self._engine.fits(prompt.ids):
            # What was kept has gone, or is damaged.
            prompt = self._kept(chat, ask, cancel)
        return prompt, woken

    def _kept(self, chat: ChatTokens, ask: Ask, cancel: threading.Event) -> Prompt:
        """A prompt without those turns that cannot be held.

        All that follow those of `ask.left_out` where the cache has seen the conversation, or can
        be given it from disk; else whole turns, the newest, up to the window.
        """
        assert self._engine is not None
        engine = self._engine
        make = partial(
            chat.prompt, ask.messages, continues=ask.continues, think=ask.think, cancel=cancel
        )
        prompt = make(left_out=ask.left_out)
        if ask.left_out:
            system = chat.system_tokens(system_of(ask.messages), cancel, think=ask.think)
            if max(engine.shared(prompt.ids), self._kept_on_disk(prompt.ids)) <= system:
                prompt = make()
        fits = engine.fits(prompt.ids, self._kept_on_disk(prompt.ids))
        return prompt if fits else make(room=engine.room(ask.room))

    def _kept_on_disk(self, ids: Sequence[int]) -> int:
        """Tokens at the beginning of a prompt that could be taken from there."""
        assert self._engine is not None
        return 0 if self._waking is None else self._waking.reach(self._engine, ids)

    def _weigh(self, ask: Ask, cancel: threading.Event) -> Iterator[Weight]:
        """By a copy of the conversation, which notes nothing."""
        if self._engine is None or self._chat is None:
            return
        try:
            prompt = self._kept(copy(self._chat), ask, cancel)
        except RenderStoppedError:
            return
        self._untold = (*self._untold, *prompt.notes)
        engine, ids, on_disk = self._engine, prompt.ids, self._kept_on_disk(prompt.ids)
        yield Weight(
            tokens=len(ids),
            new=len(ids) - max(engine.reusable(ids), on_disk),
            window=engine.plan.max_tokens,
            dropped=prompt.dropped,
            fits=engine.fits(ids, on_disk),
        )
        if not self._rested:
            self._thread.submit(self._rest)

    def _measure(self, cancel: threading.Event) -> Iterator[Completion]:
        """In a cache of its own, that the one of the conversation is not touched."""
        assert self._engine is not None
        engine = Engine(self._engine.loaded, self._engine.plan.config)
        ids = engine.loaded.tokenizer.encode(_MEASURED_TEXT)
        prompt = (ids * _MEASURED_PROMPT)[: min(_MEASURED_PROMPT, engine.plan.max_tokens // 2)]
        # The text repeats itself, which drafts would make the most of.
        request = Request(prompt=prompt, max_tokens=_MEASURED_ANSWER, lookup=False)
        for event in engine.generate(request, cancel):
            if isinstance(event, Finished):
                yield event.completion

    def _followed(
        self, engine: Engine, chat: ChatTokens, events: Iterator[Event]
    ) -> Iterator[Event]:
        """Tell the chat its answer; note the cache's figures between steps.

        Then all layers have had the same tokens.
        """
        noted = 0.0
        for event in events:
            now = time.monotonic()
            if now - noted >= _STATS_SECONDS or not isinstance(event, TextChunk | ThinkingChunk):
                self._stats, noted = engine.layer_stats(), now
            if isinstance(event, Finished):
                chat.answered(event.completion)
            yield event

    def _recall(self, text: str) -> TokenizedText | None:
        """What was kept of a conversation of this text."""
        if self._waking is None or self._engine is None:
            return None
        return self._waking.recall(self._engine, text)

    def _rest(self) -> Iterator[None]:
        """Keep what the cache holds while nothing else is to be done; the next rest goes on."""
        if self._waking is None or self._engine is None or self._chat is None:
            return
        for _ in self._waking.rest(self._engine, self._chat.said):
            if self._thread.is_wanted:
                return
        self._rested = True
        yield None

    def _leave(self) -> Iterator[None]:
        """Keep what the cache holds, if that is soon done, and let all go."""
        if self._waking is not None and self._engine is not None and self._chat is not None:
            until = time.monotonic() + LEAVE_SECONDS / 2
            for _ in self._waking.rest(self._engine, self._chat.said):
                if time.monotonic() > until:
                    break
        self._let_go()
        yield None

    def _let_go(self) -> None:
        self._engine, self._chat, self._stats = None, None, ()


def _bytes_of(engine: Engine) -> int:
    """Of a model's weights and its cache, full."""
    return engine.loaded.weight_bytes + engine.plan.max_bytes


def _info(
    engine: Engine, chat: ChatTokens, spec: str, path: Path, notes: tuple[str, ...]
) -> ModelInfo:
    loaded, plan = engine.loaded, engine.plan
    return ModelInfo(
        name=loaded.name,
        spec=spec,
        path=path,
        file_bytes=loaded.file_bytes,
        weight_bytes=loaded.weight_bytes,
        layers=plan.shape.layers,
        window=plan.max_tokens,
        holds=plan.most_held,
        max_bytes=plan.max_bytes,
        layer_bytes=plan.layer_bytes,
        token_bytes=plan.token_bytes,
        block=plan.sizes.block,
        kv=plan.kv,
        backend=plan.backend.value,
        thinks=chat.thinks,
        has_switch=chat.has_switch,
        notes=notes,
    )
