"""Compiling the CPU kernels before they are needed, so that it can be seen and stopped."""

from collections.abc import Callable
from contextlib import suppress

import mlx.core as mx

from app.interrupt import cancel_on_interrupt
from app.progress import busy_bar
from kvcache import Backend
from kvcache.native import build
from kvcache.native.build import BuildStoppedError, NativeUnavailableError
from kvcache.native.library import is_tried


def must_compile(backend: Backend) -> bool:
    """Whether the native kernels will be used here, and are not there yet."""
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    if on_gpu or is_tried() or backend not in (Backend.AUTO, Backend.CPU):
        return False
    try:
        return build.built() is None
    except NativeUnavailableError:
        return False


def compile_kernels(stopped: Callable[[], bool]) -> None:
    """Compile them, until `stopped` says yes: then BuildStoppedError is raised."""
    # Where it fails, the load says so, or does without.
    with suppress(NativeUnavailableError):
        build.build(stopped)


def compile_with_bar(backend: Backend) -> None:
    """Compile what `backend` needs, on the main thread; Ctrl-C stops it."""
    if not must_compile(backend):
        return
    with busy_bar("compiling the kernels (once)"), cancel_on_interrupt() as cancel:
        try:
            compile_kernels(cancel.is_set)
        except BuildStoppedError:
            cancel.check()
