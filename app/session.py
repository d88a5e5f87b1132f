"""From command-line flags to an engine that runs on its own thread."""

import argparse
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event as Flag

from app.console import note
from app.engine import Engine, Request
from app.generation import Event
from app.inference_thread import InferenceThread
from app.interrupt import cancel_on_interrupt
from app.kernels import compile_with_bar
from app.memory import Admitted, admit
from app.options import KEEP_SYSTEM, LoadOptions, cache_config, load_options, model_name
from app.progress import byte_bar
from kvcache import Backend, CacheConfig
from kvcache.native.build import NativeUnavailableError
from kvcache.native.library import library
from models.finding.fetch import fetch
from models.finding.progress import Progress
from models.loader import LoadedModel, OnProgress, load
from models.network.config import LlamaConfig
from models.network.native_ops import count_plain
from models.text.builtin_templates import TemplateSource
from models.text.chat_template import ChatTemplate, Message, Role, conversation

_GUESS = "this file has no chat template; ChatML is a guess, `ember run --raw` sends text as it is"


@dataclass(frozen=True, kw_only=True)
class Session:
    """An engine and the thread it lives on.

    keeps: whether the system prompt is pinned, as long as the chat format makes it.
    """

    engine: Engine
    thread: InferenceThread
    keeps: bool = False

    def generate(self, request: Request, cancel: Flag) -> Generator[Event, None, None]:
        """`Engine.generate`, run on the inference thread."""
        return self.thread.stream(lambda: self.engine.generate(request, cancel))

    def generate_batch(
        self, requests: Sequence[Request], cancel: Flag
    ) -> Generator[Event, None, None]:
        """`Engine.generate_batch`, run on the inference thread."""
        return self.thread.stream(lambda: self.engine.generate_batch(requests, cancel))

    def encode_raw(self, text: str) -> list[int]:
        """Token ids of `text` as it stands."""
        return self.engine.loaded.tokenizer.encode(text)

    def encode_chat(self, messages: list[Message]) -> list[int]:
        """Token ids of a conversation in the model's chat format, ready for an answer.

        What the format made of it is told to the user, where it matters.
        """
        loaded = self.engine.loaded
        before = loaded.template.source
        ids = self.engine.encode_chat(messages)
        if self.keeps and loaded.template.source is not before:
            kept = system_tokens(loaded, system_of(messages))
            self.thread.call(lambda: self.engine.keep(kept))
        for text in loaded.template.take_notes():
            note(text)
        return ids


@contextmanager
def open_session(args: argparse.Namespace, *, raw: bool = False) -> Iterator[Session]:
    """Fetch the model if need be, load it with progress, and own it until the end.

    raw: prompts will go to the model as they are; otherwise a chat format that is
    only a guess is told to the user.
    """
    config = cache_config(args)
    path = fetch_with_bar(model_name(args))
    compile_with_bar(config.backend)
    with InferenceThread() as thread:
        loaded, admitted = _load_with_bar(thread, path, config, load_options(args))
        config = admitted.config
        if not raw:
            loaded.template.start()
        if args.keep == KEEP_SYSTEM:
            config = replace(config, keep=system_tokens(loaded, args.system))
        engine = thread.call(lambda: Engine(loaded, config))
        for text in (
            *admitted.notes,
            *load_notes(engine, asked=config.backend, hot=args.hot, raw=raw),
        ):
            note(text)
        yield Session(engine=engine, thread=thread, keeps=args.keep == KEEP_SYSTEM)


def system_tokens(loaded: LoadedModel, system: str | None, cancel: Flag | None = None) -> int:
    """How many tokens begin every conversation under this system prompt.

    What two conversations share before the user's words, templates' own default included.
    """
    first, second = (
        loaded.template.encode(conversation(text, system=system), cancel=cancel)
        for text in ("a", "0")
    )
    shared = [a == b for a, b in zip(first, second, strict=False)]
    return shared.index(False) if False in shared else len(shared)


def system_of(messages: Sequence[Message]) -> str | None:
    """The system prompt of a conversation."""
    return next((each.content for each in messages if each.role is Role.SYSTEM), None)


def load_notes(
    engine: Engine,
    *,
    asked: Backend,
    hot: int | None,
    raw: bool = False,
    cancel: Flag | None = None,
) -> Iterator[str]:
    """What a user should know about a load, a line each.

    asked, hot: the backend and the hot tokens that were asked for. raw: no chat
    format will be used; else it is tried now, until `cancel` is set.
    """
    loaded = engine.loaded
    yield from loaded.notes
    if not raw:
        yield from _template_notes(loaded.template, cancel)
    yield from _window_notes(engine, hot=hot)
    if asked is Backend.AUTO and engine.plan.backend is Backend.REFERENCE:
        yield from _reference_notes(engine)
    if engine.plan.backend is Backend.CPU and (plain := count_plain(loaded.model)):
        yield f"{plain} weights are not quantized, or have a bias: plain MLX runs them, slowly"


def _template_notes(template: ChatTemplate, cancel: Flag | None) -> Iterator[str]:
    """What is to be said of the chat format before anything is asked."""
    template.settle(cancel)
    notes = template.take_notes()
    yield from notes
    if template.source is TemplateSource.GUESS and not notes:
        yield _GUESS


def _window_notes(engine: Engine, *, hot: int | None) -> Iterator[str]:
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
    if because := engine.plan.plain_because:
        yield f"attention runs in plain MLX, slowly: {because}"
        return
    try:
        library()
    except NativeUnavailableError as error:
        yield str(error)


def load_admitted(
    path: Path, config: CacheConfig, options: LoadOptions, progress: OnProgress
) -> tuple[LoadedModel, Admitted]:
    """A model, and the cache that fits beside it. Raises TooLargeError before it is read."""
    admitted = Admitted(config=config)

    def accept(model: LlamaConfig, weights: int) -> None:
        nonlocal admitted
        admitted = admit(config, model, weights, force=options.force)

    loaded = load(
        path,
        backend=config.backend,
        pretokenizer=options.pretokenizer,
        chat_template=options.chat_template,
        progress=progress,
        accept=accept,
    )
    return loaded, admitted


def _load_with_bar(
    thread: InferenceThread, path: Path, config: CacheConfig, options: LoadOptions
) -> tuple[LoadedModel, Admitted]:
    with byte_bar("loading") as report, cancel_on_interrupt() as cancel:

        def on_progress(done: int, total: int) -> None:
            cancel.check()
            report(done, total)

        return thread.call(lambda: load_admitted(path, config, options, on_progress))


def fetch_with_bar(model: str, *, check: bool = False) -> Path:
    """The path of a model's file, downloaded with a bar on stderr where it is missing.

    check: hold it to its hash if it is there.
    """
    with byte_bar("fetching") as report:

        def on_progress(progress: Progress) -> None:
            report(progress.done_bytes, progress.total_bytes)

        return fetch(model, progress=on_progress, check=check)
