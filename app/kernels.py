"""Compiling the CPU kernels before they are needed, so that it can be seen and stopped."""

from collections.abc import Callable
from contextlib import suppress

from app.interrupt import cancel_on_interrupt
from app.progress import busy_bar
from kvcache import Backend
from kvcache.config import on_gpu
from kvcache.native import build, library
from kvcache.native.build import BuildStoppedError, NativeUnavailableError, Sources
from models.native import kernels


def must_compile(backend: Backend) -> bool:
    """Whether the CPU kernels will be used here, and are not there yet."""
    if on_gpu() or library.is_tried() or backend not in (Backend.AUTO, Backend.CPU):
        return False
    try:
        return bool(_missing())
    except NativeUnavailableError:
        return False


def compile_kernels(stopped: Callable[[], bool]) -> None:
    """Compile what is missing, until `stopped` says yes: then BuildStoppedError is raised."""
    # Where it fails, the load says so, or does without.
    with suppress(NativeUnavailableError):
        build.build(_missing(), stopped)


def compile_with_bar(backend: Backend) -> None:
    """Compile what `backend` needs, on the main thread; Ctrl-C stops it."""
    if not must_compile(backend):
        return
    with busy_bar("compiling the kernels (once)"), cancel_on_interrupt() as cancel:
        try:
            compile_kernels(cancel.is_set)
        except BuildStoppedError:
            cancel.check()


def _missing() -> list[Sources]:
    """Of the cache's kernels and the network's, what the loads would have to compile."""
    wanted = (library.SOURCES, kernels.SOURCES)
    return [sources for sources in wanted if build.built(sources) is None]
