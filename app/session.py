"""From command-line flags to an engine that runs on its own thread."""

import argparse
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event as Flag

from app.cache_flags import KEEP_SYSTEM, cache_config, load_options
from app.chat_tokens import ChatTokens, Prompt, system_of
from app.console import note
from app.engine import Engine, Request
from app.events import Event
from app.flag_words import with_flags
from app.hub_models import weights_room
from app.inference_thread import InferenceThread
from app.interrupt import cancel_on_interrupt
from app.kernels import compile_later, compiling, wanted
from app.layer_losses import in_bits
from app.memory import Admitted, Dimensions, Need, TooLargeError, admit, need_of
from app.options import LoadOptions, model_name
from app.progress import byte_bar, step_bar, token_bar
from app.ranks.calls import Load
from app.ranks.company import Company
from app.ranks.rank_engine import RankEngine
from app.ranks.same_model import load_together, narrowest
from kvcache import Backend, CacheConfig
from kvcache.errors import NativeUnavailableError
from kvcache.native.library import library
from models.calibrate import TOKENS, is_wanted
from models.finding.fetch import fetch
from models.finding.progress import Progress
from models.loader import Accept, Compile, LoadedModel, OnProgress, load
from models.network.config import NetworkConfig
from models.text.messages import Message
from models.text.thinking import no_switch

COUNTING = "reading a text, to encode keys better (once)"
_LONG_WARM_UP = 3.0  # seconds, from which on a user is told


@dataclass(frozen=True, kw_only=True)
class Session:
    """An engine, the thread it lives on, and the ids of its chat.

    keeps: whether the system prompt is pinned, as long as the chat format makes it. think:
    whether the model is to think; None leaves it to its template.
    """

    engine: Engine
    chat: ChatTokens
    thread: InferenceThread
    keeps: bool = False
    think: bool | None = None

    def generate(self, request: Request, cancel: Flag) -> Generator[Event, None, None]:
        """`Engine.generate`, run on the inference thread."""
        return self.thread.stream(lambda: self.engine.generate(request, cancel))

    def generate_batch(
        self, requests: Sequence[Request], cancel: Flag
    ) -> Generator[Event, None, None]:
        """`Engine.generate_batch`, run on the inference thread."""
        return self.thread.stream(lambda: self.engine.generate_batch(requests, cancel))

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """A conversation, ready for an answer; what is to be said of it is told."""
        made = self.chat.prompt(messages, think=self.think)
        if self.keeps:
            kept = self.chat.system_tokens(system_of(messages), think=self.think)
            self.thread.call(lambda: self.engine.keep(kept))
        for text in made.notes:
            note(text)
        return made


@contextmanager
def open_session(
    args: argparse.Namespace, *, raw: bool = False, think: bool | None = None
) -> Iterator[Session]:
    """Fetch the model if need be, load it with progress, and own it until the end.

    raw: prompts will go to the model as they are; otherwise a chat format that is
    only a guess is told to the user, or one that has no switch for `think`.
    """
    config = cache_config(args)
    with compiling(wanted(config.backend, model_name(args))):
        path = fetch_with_bar(model_name(args))
    with InferenceThread() as thread:
        loaded, admitted = _load_with_bar(thread, path, config, args, renders=not raw)
        config, chat = admitted.config, ChatTokens(loaded)
        if args.keep == KEEP_SYSTEM:
            config = replace(config, keep=chat.system_tokens(args.system, think=think))
        engine = _engine_with_bar(thread, loaded, config, args.company)
        compile_later(config)
        for text in (
            *admitted.notes,
            *load_notes(engine, asked=config.backend, hot=args.hot, chat=None if raw else chat),
        ):
            note(text)
        if think is not None and not chat.has_switch:
            note(no_switch(thinks=chat.thinks, budget="--think-budget 0"))
        keeps = args.keep == KEEP_SYSTEM
        yield Session(engine=engine, chat=chat, thread=thread, keeps=keeps, think=think)


def load_notes(
    engine: Engine,
    *,
    asked: Backend,
    hot: int | None,
    chat: ChatTokens | None,
    cancel: Flag | None = None,
) -> Iterator[str]:
    """What a user should know about a load, a line each.

    asked, hot: the backend and the hot tokens that were asked for. chat: its format is
    tried now, until `cancel` is set; None where none will be used.
    """
    loaded = engine.loaded
    yield from loaded.notes
    if chat is not None:
        yield from chat.settle(cancel)
    yield from window_notes(engine, hot=hot)
    if asked is Backend.AUTO and engine.plan.backend is Backend.REFERENCE:
        yield from _reference_notes(engine)
    alone = loaded.group is None  # what is counted of a whole model is of no use to a part
    if alone and engine.plan.takes_metric and engine.metric is None and is_wanted():
        yield (
            f"keys are encoded less well than they could be: `ember calibrate {loaded.path}`, "
            f"which reads {TOKENS:,} tokens, is needed once"
        )
    if engine.warm_up_seconds > _LONG_WARM_UP:
        yield (
            f"compiling the GPU kernels and comparing them with plain MLX took "
            f"{engine.warm_up_seconds:.0f} s of this load"
        )


def window_notes(engine: Engine, *, hot: int | None) -> Iterator[str]:
    """Where the tiers are not what was asked for, or longer than the model knows."""
    window, trained = engine.plan.max_tokens, engine.plan.shape.context
    if asked := engine.plan.capped_from:
        yield (
            f"the window is {window} tokens, not {asked}: the model was trained for no more; "
            "--beyond-context allows it"
        )
    if hot is not None and engine.plan.hot_capped_from:
        yield f"{engine.plan.sizes.hot} tokens stay unencoded, not {hot}: no more fit the window"
    if window > trained:
        yield f"a window of {window} tokens is beyond the {trained} that the model was trained for"


def _reference_notes(engine: Engine) -> Iterator[str]:
    """Why the slow backend runs, since nothing falls back in silence."""
    if because := engine.plan.reference_because:
        yield f"attention runs in plain MLX, slowly: {with_flags(because)}"
    elif why := _why_no_kernels():
        yield why


def _why_no_kernels() -> str | None:
    """Why there are none for the CPU, if so."""
    try:
        library()
    except NativeUnavailableError as error:
        return str(error)
    return None


def load_admitted(
    path: Path,
    config: CacheConfig,
    options: LoadOptions,
    progress: OnProgress | None = None,
    make_room: Callable[[Need], None] | None = None,
    compiles: Compile | None = None,
    company: Company | None = None,
    renders: bool = False,
) -> tuple[LoadedModel, Admitted]:
    """A model, and the cache that fits beside it. Raises TooLargeError before it is read.

    make_room: told what both take, before a tensor is read. compiles, renders: see `load`.
    company: the ranks that each load their share of it.
    """
    admitted = Admitted(config=config)

    def accept(model: NetworkConfig, weights: int) -> None:
        nonlocal admitted
        wanted = asked_cache(path, config, options, model)
        admitted = admit_file(path, wanted, model, weights, force=options.force)
        if make_room is not None:
            make_room(need_of(admitted.config, model, weights))

    read = partial(
        load_as_asked,
        path,
        config,
        options,
        company,
        accept=accept,
        progress=progress,
        compiles=compiles,
        renders=renders,
    )
    if company is None:
        return read(), admitted
    # Which codecs give so many bits is looked up once.
    call = Load(path=path, config=config, options=replace(options, bits=None))
    return load_together(company, call, read), narrowest(admitted, company)


def load_as_asked(
    path: Path,
    config: CacheConfig,
    options: LoadOptions,
    company: Company | None,
    *,
    accept: Accept,
    progress: OnProgress | None,
    compiles: Compile | None = None,
    renders: bool,
) -> LoadedModel:
    """`load`, by what flags say of a model; the share of this rank."""
    return load(
        path,
        backend=config.backend,
        pretokenizer=options.pretokenizer,
        chat_template=options.chat_template,
        progress=progress,
        accept=accept,
        compiles=compiles,
        group=None if company is None else company.group,
        renders=renders,
    )


def asked_cache(
    path: Path, config: CacheConfig, options: LoadOptions, model: NetworkConfig
) -> CacheConfig:
    """The cache that flags ask for, each layer with codecs of its own where they name bits."""
    return config if options.bits is None else in_bits(config, options.bits, path, model.shape)


def make_engine(
    loaded: LoadedModel,
    config: CacheConfig,
    company: Company | None,
    *,
    warming: OnProgress | None = None,
    counting: OnProgress | None = None,
) -> Engine:
    """An engine; on every rank of a company."""
    if company is None:
        return Engine(loaded, config, warming=warming, counting=counting)
    return RankEngine(company, loaded, config, warming=warming)


def admit_file(
    path: Path, config: CacheConfig, model: Dimensions, weights: int, *, force: bool
) -> Admitted:
    """`admit`, for a file's weights: where they take more than the file, it is said why."""
    try:
        return admit(config, model, weights, force=force)
    except TooLargeError as error:
        if weights <= path.stat().st_size:
            raise
        raise TooLargeError(f"{error}; {_floats_because(config.backend)}") from error


def _floats_because(asked: Backend) -> str:
    said = "the reference backend holds weights as floats"
    if asked is Backend.AUTO and (why := _why_no_kernels()):
        return f"{said}, and runs here because of: {why}"
    return said


def _load_with_bar(
    thread: InferenceThread,
    path: Path,
    config: CacheConfig,
    args: argparse.Namespace,
    *,
    renders: bool,
) -> tuple[LoadedModel, Admitted]:
    options, company = load_options(args), args.company
    with byte_bar("loading") as report, cancel_on_interrupt() as cancel:

        def on_progress(done: int, total: int) -> None:
            cancel.check()
            report(done, total)

        return thread.call(
            lambda: load_admitted(
                path, config, options, on_progress, company=company, renders=renders
            )
        )


def _engine_with_bar(
    thread: InferenceThread, loaded: LoadedModel, config: CacheConfig, company: Company | None
) -> Engine:
    """Bars are of what a model's first load counts, and of the GPU kernels' warm-up."""
    with (
        token_bar(COUNTING) as counted,
        step_bar("compiling the GPU kernels") as report,
        cancel_on_interrupt() as cancel,
    ):

        def counting(done: int, total: int) -> None:
            cancel.check()
            counted(done, total)

        def warming(done: int, total: int) -> None:
            cancel.check()
            report(done, total)

        engine = thread.call(
            lambda: make_engine(loaded, config, company, warming=warming, counting=counting)
        )
        cancel.check()
        return engine


def fetch_with_bar(model: str, *, check: bool = False) -> Path:
    """The path of a model's file, downloaded with a bar on stderr where it is missing.

    check: hold it to its hash if it is there.
    """
    with byte_bar("fetching") as report:

        def on_progress(progress: Progress) -> None:
            report(progress.done_bytes, progress.total_bytes)

        return fetch(
            model,
            progress=on_progress,
            check=check,
            room=weights_room(),
            chosen=lambda choice: note(choice.because),
        )
