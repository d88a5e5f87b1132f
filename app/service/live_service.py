"""`ModelService` over a real engine on the inference thread."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from app import memory
from app.cache_flags import KEEP_SYSTEM, bits_of
from app.chat_tokens import ChatTokens, system_of
from app.engine import Engine, PromptTooLongError, Request
from app.events import Completion, Event, Finished, TextChunk, ThinkingChunk
from app.hub_models import weights_room
from app.inference_thread import LEAVE_SECONDS, InferenceThread
from app.job import Job
from app.kernels import (
    COMPILING,
    compile_beside,
    compile_kernels,
    compile_later,
    wanted,
    wanted_later,
)
from app.layer_losses import with_kv
from app.memory import Need, admit
from app.options import LoadOptions
from app.ranks.company import Company
from app.service.cache_change import change_line, require_reached
from app.service.contract import (
    AnswerEvent,
    Ask,
    CacheChanged,
    CacheWish,
    FetchEvent,
    LetGo,
    LoadEvent,
    ModelInfo,
    Prepared,
    Told,
    TooLong,
    Weight,
)
from app.service.loading import (
    CancelledError,
    bytes_of,
    doing,
    info_of,
    once,
    planned,
    until_stopped,
)
from app.service.reader import Reader
from app.session import load_admitted, load_notes, make_engine, window_notes
from app.wake.waking import Waking
from kvcache import CacheConfig, EmberError
from kvcache.native.build import Sources
from kvcache.stats import CacheStats
from models.errors import ModelNotFoundError, RenderStoppedError
from models.finding.choice import Choice
from models.finding.fetch import fetch
from models.finding.progress import Progress
from models.finding.source import can_be_fetched, locate
from models.loader import Compile, OnProgress

_STATS_SECONDS = 0.1
_CHANGING = "changing the cache"
# What a look at the speed reads and answers, in tokens.
_MEASURED_PROMPT, _MEASURED_ANSWER = 256, 32
_MEASURED_TEXT = "Once upon a time there was a small robot that counted every star it saw. "


class LiveService:
    """Owns the inference thread, and the engine that lives there.

    keep_system: pin what a conversation under this system prompt begins with;
    None pins no more than the configuration says. hot: the hot tokens that were
    asked for, None for the default. load: for every model. waking: what keeps caches between
    answers and takes them back, None for nothing. company: the ranks that share every model.
    """

    def __init__(
        self,
        config: CacheConfig,
        *,
        keep_system: str | None = None,
        hot: int | None = None,
        load: LoadOptions | None = None,
        waking: Waking | None = None,
        company: Company | None = None,
    ) -> None:
        self._waking, self._company = waking, company
        self._config, self._hot = config, hot
        # What is kept is the beginning of a conversation under the last system prompt.
        self._keeps_system, self._system = keep_system is not None, keep_system or None
        self._load_options = load or LoadOptions()
        self._thread = InferenceThread()
        self._reader: Reader | None = None
        self._info: ModelInfo | None = None
        self._stats: Sequence[CacheStats] = ()
        # Whether all that the cache holds is kept, as far as it is to be.
        self._rested = True
        self._cancel = threading.Event()
        self._cancel_fetch = threading.Event()
        # Beside a download.
        self._compiling: threading.Thread | None = None

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
                raise CancelledError
            job.put(Progress(done_bytes=done, total_bytes=total, label="loading"))

        compiles = self._compiler(job, cancel)

        def work() -> Iterator[LoadEvent]:
            compiles(wanted(self._config.backend, spec))
            yield from self._load(spec, job, report, once(job, cancel), cancel, compiles)

        return self._thread.submit(lambda: until_stopped(work()), job)

    def change_cache(self, wish: CacheWish) -> Job[LoadEvent]:
        self._cancel = cancel = threading.Event()
        job: Job[LoadEvent] = Job()
        job.put(doing(_CHANGING))
        change, compiles = self._change, self._compiler(job, cancel)
        return self._thread.submit(
            lambda: until_stopped(change(wish, once(job, cancel), cancel, compiles)), job
        )

    def fetch(self, spec: str) -> Job[FetchEvent]:
        job: Job[FetchEvent] = Job()
        self._cancel_fetch = cancel = threading.Event()

        def report(progress: Progress) -> None:
            if cancel.is_set():
                raise CancelledError
            job.put(progress)

        def chosen(choice: Choice) -> None:
            job.put(Told(text=choice.because))

        def work() -> Iterator[FetchEvent]:
            self._compiling = compile_beside(wanted(self._config.backend), cancel.is_set)
            try:
                fetch(spec, progress=report, room=weights_room(), chosen=chosen)
            except CancelledError as stop:
                for text in getattr(stop, "__notes__", ()):
                    yield Told(text=text)
                return
            yield Progress(done_bytes=1, total_bytes=1, label="done")

        threading.Thread(target=job.run, args=(work,), name="fetch", daemon=True).start()
        return job

    def answer(self, ask: Ask) -> Job[AnswerEvent]:
        self._cancel = cancel = threading.Event()
        return self._thread.submit(lambda: self._answer(ask, cancel))

    def weigh(self, ask: Ask) -> Job[Weight]:
        return self._thread.submit(lambda: self._weigh(ask))

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
        if self._compiling is not None:
            self._compiling.join(LEAVE_SECONDS)
        if self._waking is not None:
            self._waking.close(LEAVE_SECONDS)

    @staticmethod
    def _compiler(job: Job[LoadEvent], cancel: threading.Event) -> Compile:
        """What compiles kernels where the job shows it and the user can stop it."""

        def compiles(found: Sequence[Sources]) -> None:
            if found:
                job.put(doing(COMPILING))
                compile_kernels(found, cancel.is_set)

        return compiles

    # -- on the inference thread --

    def _load(
        self,
        spec: str,
        job: Job[LoadEvent],
        report: OnProgress,
        told: tuple[OnProgress, OnProgress],
        cancel: threading.Event,
        compiles: Compile,
    ) -> Iterator[LoadEvent]:
        path = locate(spec)
        if self._company is not None and self._reader is not None:
            # All ranks hold the same model, or none: one that cannot load this has let go too.
            self._let_go()
            job.put(LetGo())

        def make_room(need: Need) -> None:
            """Two models are in memory together where they fit."""
            held = 0 if self._reader is None else bytes_of(self._engine_of(self._reader))
            if held and not need.fits_beside(held, memory.memory()):
                self._let_go()
                job.put(LetGo())

        loaded, admitted = load_admitted(
            path,
            self._config,
            self._load_options,
            report,
            make_room,
            compiles,
            company=self._company,
            renders=True,
        )
        config, reader = admitted.config, Reader(loaded, self._waking)
        chat = reader.chat
        if self._keeps_system:
            config = replace(config, keep=chat.system_tokens(self._system, cancel))
        warming, counting = told
        engine = make_engine(loaded, config, self._company, warming=warming, counting=counting)
        compile_later(config)
        said = load_notes(engine, asked=config.backend, hot=self._hot, chat=chat, cancel=cancel)
        notes = (*admitted.notes, *said)
        reader.engine = engine
        self._reader, self._stats = reader, engine.layer_stats()
        self._info = info_of(engine, chat, spec, path, notes)
        yield self._info

    def _change(
        self,
        wish: CacheWish,
        told: tuple[OnProgress, OnProgress],
        cancel: threading.Event,
        compiles: Compile,
    ) -> Iterator[LoadEvent]:
        config, keeps = wish.over(self._config), wish.keep == KEEP_SYSTEM
        options = replace(self._load_options, bits=bits_of(wish.kv))
        reader = self._reader
        if reader is not None and self._info is not None:
            engine = self._engine_of(reader)
            loaded, before, held = engine.loaded, engine.plan, engine.stats()
            asked = with_kv(config, wish.kv, self._info.path, engine.plan.shape)
            require_reached(asked, before)
            admitted = admit(asked, loaded.config, loaded.weight_bytes, force=options.force)
            adapted = admitted.config
            if keeps:
                adapted = replace(adapted, keep=reader.chat.system_tokens(self._system, cancel))
            warming, counting = told
            compiles(wanted_later(adapted))
            engine.adapt(adapted, warming=warming, counting=counting)
            self._stats = engine.layer_stats()
            line = change_line(before, held, engine.plan, engine.stats())
            hot = wish.hot if wish.hot != CacheConfig.hot else None
            yield CacheChanged(said=(line, *admitted.notes, *window_notes(engine, hot=hot)))
            self._info = replace(self._info, **planned(engine))
            yield self._info
        else:
            yield CacheChanged(said=())
        self._config, self._load_options, self._keeps_system = config, options, keeps
        self._rested = False
        self._thread.submit(self._rest)

    def _answer(self, ask: Ask, cancel: threading.Event) -> Iterator[AnswerEvent]:
        reader = self._reader
        assert reader is not None
        engine, self._system = self._engine_of(reader), system_of(ask.messages)
        try:
            if self._keeps_system:
                engine.keep(reader.chat.system_tokens(self._system, cancel, think=ask.think))
            prompt, woken, notes = reader.prompt(ask, cancel)
        except RenderStoppedError:
            return
        except PromptTooLongError as error:
            yield TooLong(prompt_tokens=error.length, window=error.window)
            return
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
            allow_loops=ask.allow_loops,
        )
        yield Prepared(
            prompt_tokens=len(prompt.ids),
            ends=prompt.ends,
            dropped=prompt.dropped,
            woken=woken,
            notes=notes,
        )
        try:
            yield from self._followed(engine, reader.chat, engine.generate(request, cancel))
        finally:
            self._rested = False
            self._thread.submit(self._rest)

    def _weigh(self, ask: Ask) -> Iterator[Weight]:
        # Of drafts that follow each other the last is weighed, and an answer comes first.
        if self._reader is None or self._thread.is_wanted:
            return
        with suppress(RenderStoppedError):
            yield self._reader.weigh(ask, threading.Event())
        if not self._rested:
            self._thread.submit(self._rest)

    @staticmethod
    def _engine_of(reader: Reader) -> Engine:
        assert reader.engine is not None
        return reader.engine

    def _measure(self, cancel: threading.Event) -> Iterator[Completion]:
        """In a cache of its own, that the one of the conversation is not touched."""
        assert self._reader is not None
        if self._company is not None:
            raise EmberError("the speed of several ranks is not measured: answers tell theirs")
        own = self._engine_of(self._reader)
        engine = Engine(own.loaded, own.plan.config)
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

    def _rest(self) -> Iterator[None]:
        """Keep what the cache holds while nothing else is to be done; the next rest goes on."""
        if self._reader is None:
            return
        for _ in self._reader.rest():
            if self._thread.is_wanted:
                return
        self._rested = True
        yield None

    def _leave(self) -> Iterator[None]:
        """Keep what the cache holds, if that is soon done, and let all go."""
        if self._reader is not None:
            until = time.monotonic() + LEAVE_SECONDS / 2
            for _ in self._reader.rest():
                if time.monotonic() > until:
                    break
        self._let_go()
        yield None

    def _let_go(self) -> None:
        self._reader, self._info, self._stats = None, None, ()
