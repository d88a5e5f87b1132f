"""Compiling the CPU kernels before they are needed, so that it can be seen and stopped."""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from app.interrupt import cancel_on_interrupt
from app.progress import busy_bar
from kvcache import Backend, CacheConfig, EmberError
from kvcache.codecs import codec
from kvcache.config import on_gpu
from kvcache.errors import BuildStoppedError, NativeUnavailableError
from kvcache.native import build
from kvcache.native.build import Sources
from kvcache.native.compilers import find_compiler
from models.finding.source import locate
from models.gguf.file import GGUFFile
from models.gguf.tensor_types import TensorType
from models.native.kernels import kinds_of, missing, missing_codings

COMPILING = "compiling the kernels (once)"
_ASK_SECONDS = 0.1
# What `compile_later` has begun.
_LATER: list[threading.Thread] = []


def only_reference(backend: Backend) -> bool:
    """Whether plain MLX will run: it is asked for, or nothing else can be compiled here.

    Compiles nothing to find out.
    """
    if backend is not Backend.AUTO or on_gpu():
        return backend is Backend.REFERENCE
    try:
        find_compiler()
    except NativeUnavailableError:
        return True
    return False


def wanted(backend: Backend, model: str | None = None) -> list[Sources]:
    """What a model's first answer needs, and has to be compiled first.

    What a model that is not here yet needs beside, its load compiles; and it does that too where
    nothing else is to be compiled, as it reads the file's header anyway.
    """
    found = missing(backend)
    if not found or model is None:
        return found
    return missing(backend, _kinds_at(model))


def wanted_later(config: CacheConfig) -> list[Sources]:
    """What a cache needs as soon as it encodes, and has to be compiled."""
    return missing_codings(config.backend, map(codec, config.codecs))


def _kinds_at(model: str) -> frozenset[TensorType]:
    """Of a model's weights; none where it is not here, or not to be read."""
    try:
        with GGUFFile(locate(model)) as file:
            return kinds_of(file.tensors.values())
    except EmberError:
        return frozenset()


def compile_kernels(found: Sequence[Sources], stopped: Callable[[], bool]) -> None:
    """Compile what was found wanting, until `stopped` says yes.

    Then BuildStoppedError is raised.
    """
    # Where it fails, the load says so, or does without.
    with suppress(NativeUnavailableError):
        build.build(found, stopped)


def compile_beside(
    found: Sequence[Sources], stopped: Callable[[], bool]
) -> threading.Thread | None:
    """Compile it on a thread; None where there is nothing to compile."""
    if not found:
        return None

    def work() -> None:
        with suppress(BuildStoppedError):
            compile_kernels(found, stopped)

    thread = threading.Thread(target=work, name="compile", daemon=True)
    thread.start()
    return thread


def compile_later(config: CacheConfig) -> None:
    """Compile what a cache will encode by, while its first answer is computed.

    Who needs it before waits for it; a program that ends does not, but by `compile_rest`.
    """
    thread = compile_beside(wanted_later(config), lambda: False)
    if thread is not None:
        _LATER.append(thread)


def compile_rest() -> None:
    """Wait for what still compiles, as the next program would begin it anew; with a bar."""
    while _LATER:
        thread = _LATER.pop()
        if thread.is_alive():
            _wait_for(thread)


@contextmanager
def compiling(found: Sequence[Sources]) -> Iterator[None]:
    """Compile what was found wanting beside what is done within this, on the main thread.

    What is left to wait for then has a bar, and Ctrl-C stops it.
    """
    stop = threading.Event()
    thread = compile_beside(found, stop.is_set)
    try:
        yield
        if thread is not None and thread.is_alive():
            _wait_for(thread)
    finally:
        stop.set()
        if thread is not None:
            thread.join()


def _wait_for(thread: threading.Thread) -> None:
    if not sys.stderr.isatty():
        print(f"ember: {COMPILING}", file=sys.stderr)
    with busy_bar(COMPILING), cancel_on_interrupt() as cancel:
        while thread.is_alive():
            thread.join(_ASK_SECONDS)
            cancel.check()
