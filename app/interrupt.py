"""Ctrl-C ends an answer, not the program's good manners."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_INTERRUPTED = 130


def exit_on_interrupt() -> None:
    """From here on, Ctrl-C ends the program at once: nothing is left to be saved."""
    signal.signal(signal.SIGINT, lambda _signal, _frame: os._exit(_INTERRUPTED))


@contextmanager
def cancel_on_interrupt() -> Iterator[threading.Event]:
    """A flag that the first Ctrl-C sets; a second one interrupts as usual."""
    cancel = threading.Event()
    previous = signal.getsignal(signal.SIGINT)

    def on_interrupt(_signal: int, _frame: object) -> None:
        cancel.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield cancel
    finally:
        signal.signal(signal.SIGINT, previous)
