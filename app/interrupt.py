"""Signals that end an answer or the program, not its good manners.

Ctrl-C (SIGINT), a kill that asks (SIGTERM), a terminal that hangs up (SIGHUP): the
exit code is 128 and the signal's number. What the parent has told this process to
ignore, as nohup does with SIGHUP, is ignored.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

_BASE = 128
_KILLS = (signal.SIGTERM, signal.SIGHUP)
_LEAVE_SECONDS = 5.0
_AGAIN_SECONDS = 0.01
# Of asyncio's loops; one that was never whole has not what this closes.
_LOOPS_END = "BaseEventLoop.__del__"


class Cancel(threading.Event):
    """Set by the first signal that asks for the end; exit_code is 0 until then."""

    def __init__(self) -> None:
        super().__init__()
        self.exit_code = 0

    def check(self) -> None:
        """Do nothing, or raise what ends the program: KeyboardInterrupt, SystemExit by a kill."""
        if self.exit_code == exit_code(signal.SIGINT):
            raise KeyboardInterrupt
        self.check_killed()

    def check_killed(self) -> None:
        """As `check`, but Ctrl-C may end the answer alone."""
        if self.exit_code not in (0, exit_code(signal.SIGINT)):
            raise SystemExit(self.exit_code)


def exit_code(number: int) -> int:
    """What a program ends with that a signal has ended."""
    return _BASE + number


def exit_on_kill() -> None:
    """From here on, a kill ends the program from the inside out, as an exception does."""

    def on_signal(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(exit_code(number))

    for number in _heard():
        signal.signal(number, on_signal)


@contextmanager
def telling_of_kills(tell: Callable[[int], None]) -> Iterator[None]:
    """Within this, a kill calls `tell` with the exit code, amid whatever runs."""

    def on_signal(number: int, _frame: FrameType | None) -> None:
        tell(exit_code(number))

    restore = _handle(on_signal, _heard())
    try:
        yield
    finally:
        restore()


def hear_again() -> None:
    """From here on, a signal that comes amid a finalizer, which drops what it raises, comes again.

    A program's start collects some garbage, and would go on as if nobody had pressed Ctrl-C.
    """
    tell = sys.unraisablehook

    def on_dropped(dropped: "sys.UnraisableHookArgs") -> None:
        match dropped.exc_value:
            case KeyboardInterrupt():
                _send_soon(signal.SIGINT)
            case SystemExit(code=int(code)) if code > _BASE:
                _send_soon(code - _BASE)
            case AttributeError() if getattr(dropped.object, "__qualname__", "") == _LOOPS_END:
                pass  # a signal came amid its making
            case _:
                tell(dropped)

    sys.unraisablehook = on_dropped


def _send_soon(number: int) -> None:
    """By a thread, as what a handler raises is dropped here too."""
    timer = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


def ignore_signals() -> None:
    """From here on the program ends, whoever interrupts."""
    for number in (signal.SIGINT, *_KILLS):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def leaving_on_signal(
    leave: Callable[[int], None], *, before_end: Callable[[], None]
) -> Iterator[None]:
    """Within this, signals call `leave` with the exit code; who does not leave is ended soon.

    before_end: is called by the thread that ends him.
    """
    limits: list[threading.Timer] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        limits.append(end_within(_LEAVE_SECONDS, exit_code(number), before_end))
        leave(exit_code(number))

    restore = _handle(on_signal, _all_heard())
    try:
        yield
    finally:
        restore()
        for limit in limits:
            limit.cancel()


@contextmanager
def cancel_on_interrupt() -> Iterator[Cancel]:
    """A flag that the first signal sets; a second one ends the program as usual.

    What does not hear of a kill is ended some seconds later.
    """
    cancel = Cancel()
    limits: list[threading.Timer] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        cancel.exit_code = exit_code(number)
        cancel.set()
        restore()
        if number in _KILLS:
            limits.append(end_within(_LEAVE_SECONDS, cancel.exit_code))

    restore = _handle(on_signal, _all_heard())
    try:
        yield cancel
    finally:
        restore()
        for limit in limits:
            limit.cancel()


@contextmanager
def unheard(seconds: float, code: int) -> Iterator[None]:
    """Within this, signals change nothing; who is not done in time is ended with this code."""
    restore = _handle(signal.SIG_IGN, _all_heard())
    limit = end_within(seconds, code)
    try:
        yield
    finally:
        limit.cancel()
        restore()


def end_within(
    seconds: float, code: int, before: Callable[[], None] = lambda: None
) -> threading.Timer:
    """End the process after that time, whatever still runs, unless the timer is cancelled."""

    def end_now() -> None:
        try:
            before()
        finally:
            _end_now(code)

    timer = threading.Timer(seconds, end_now)
    timer.daemon = True
    timer.start()
    return timer


def end(code: int) -> NoReturn:
    """End the process, also where a thread cannot be stopped: Python's own end may crash then."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    if any(each.daemon for each in threading.enumerate()):
        _end_now(code)
    sys.exit(code)


def _end_now(code: int) -> NoReturn:
    """Without Python's own end; no compiler is left behind."""
    from kvcache.native import programs  # where none was run, this is all that is loaded of it

    programs.end_all()
    os._exit(code)


def _heard() -> list[signal.Signals]:
    return [number for number in _KILLS if signal.getsignal(number) is not signal.SIG_IGN]


def _all_heard() -> list[signal.Signals]:
    return [signal.SIGINT, *_heard()]


def _handle(
    handler: Callable[[int, FrameType | None], None] | signal.Handlers,
    numbers: Iterable[signal.Signals],
) -> Callable[[], None]:
    """Take these signals; returns what gives them back."""
    previous = {each: signal.signal(each, handler) for each in numbers}

    def restore() -> None:
        for number, before in previous.items():
            signal.signal(number, before)

    return restore
