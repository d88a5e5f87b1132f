"""Compiling the CPU kernels before they are needed, so that it can be seen and stopped."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

from app.interrupt import cancel_on_interrupt
from app.progress import busy_bar
from kvcache import Backend
from kvcache.config import on_gpu
from kvcache.native import build
from kvcache.native.build import BuildStoppedError, NativeUnavailableError
from models.native.kernels import missing

COMPILING = "compiling the kernels (once)"
_ASK_SECONDS = 0.1


def only_reference(backend: Backend) -> bool:
    """Whether plain MLX will run: it is asked for, or nothing else can be compiled here.

    Compiles nothing to find out.
    """
    if backend is not Backend.AUTO or on_gpu():
        return backend is Backend.REFERENCE
    try:
        build.find_compiler()
    except NativeUnavailableError:
        return True
    return False


def compile_kernels(backend: Backend, stopped: Callable[[], bool]) -> None:
    """Compile what `backend` lacks, until `stopped` says yes: then BuildStoppedError is raised."""
    # Where it fails, the load says so, or does without.
    with suppress(NativeUnavailableError):
        build.build(missing(backend), stopped)


def compile_beside(backend: Backend, stopped: Callable[[], bool]) -> Thread | None:
    """Compile what `backend` needs on a thread; None where there is nothing to compile."""
    if not missing(backend):
        return None

    def work() -> None:
        with suppress(BuildStoppedError):
            compile_kernels(backend, stopped)

    thread = Thread(target=work, name="compile", daemon=True)
    thread.start()
    return thread


@contextmanager
def compiling(backend: Backend) -> Iterator[None]:
    """Compile what `backend` needs beside what is done within this, on the main thread.

    What is left to wait for then has a bar, and Ctrl-C stops it.
    """
    stop = Event()
    thread = compile_beside(backend, stop.is_set)
    try:
        yield
        if thread is not None and thread.is_alive():
            _wait_for(thread)
    finally:
        stop.set()
        if thread is not None:
            thread.join()


def _wait_for(thread: Thread) -> None:
    if not sys.stderr.isatty():
        print(f"ember: {COMPILING}", file=sys.stderr)
    with busy_bar(COMPILING), cancel_on_interrupt() as cancel:
        while thread.is_alive():
            thread.join(_ASK_SECONDS)
            cancel.check()
