"""Questions to the Hugging Face Hub, each on a thread of its own.

So a question can be left while a server says nothing, and ends where it never will. Knows
nothing of what is asked, or of what the answers mean.
"""

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar
from functools import cache
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from models.errors import FetchError
from models.finding.hub_errors import UNREACHABLE
from models.finding.progress import Progress, ProgressCallback

T = TypeVar("T")

_POLL_SECONDS = 0.1
# How long a question that was left is waited for, so that it closes what it has open.
_LEAVE_SECONDS = 2.0
# A server that has not answered for this many of its time limits never will.
_PATIENCE = 3
# As often is asked where nobody answers at all, each time later; huggingface_hub would go on
# for 23 seconds.
_TRIES = 3


def ask(
    what: str, work: Callable[[ProgressCallback], T], report: ProgressCallback, *, label: str
) -> T:
    """What `work` returns or raises, which asks the Hub and may report how far it is.

    what: names it in errors. label: of the first report. An exception from `report`, which
    is called all the time, ends it. Raises FetchError where the Hub says nothing.
    """
    watch = _Watch(what)
    items: SimpleQueue[Progress | None] = SimpleQueue()
    outcome: Future[T] = Future()

    def tell(progress: Progress) -> None:
        watch.check_left()
        items.put(progress)

    def run() -> None:
        _current.set(watch)
        try:
            _watch_requests()
            outcome.set_result(work(tell))
        # Raised again by the thread that waits, whatever it is.
        except BaseException as error:  # noqa: BLE001
            outcome.set_exception(error)
        items.put(None)

    thread = threading.Thread(target=run, name="hub", daemon=True)
    thread.start()
    last: Progress | None = Progress(done_bytes=0, total_bytes=None, label=label)
    try:
        while last is not None:
            report(last)
            watch.check_silence()
            with suppress(Empty):
                last = items.get(timeout=_POLL_SECONDS)
    finally:
        if not outcome.done():
            watch.leave()
            thread.join(_LEAVE_SECONDS)
    return outcome.result()


class _LeftError(Exception):
    """Ends a question whose answer nobody waits for."""


class _Watch:
    """When one thread asked last, and what it reads the answer from."""

    def __init__(self, what: str) -> None:
        from huggingface_hub import constants

        self._what = what
        self._left = threading.Event()
        self._asked_at: float | None = None
        self._unanswered = 0
        self._stream: Any = None
        self._patience = _PATIENCE * constants.HF_HUB_DOWNLOAD_TIMEOUT

    def asking(self) -> None:
        """A request goes out."""
        self.check_left()
        if self._unanswered == _TRIES:
            told = UNREACHABLE.format(f"{_TRIES} requests without an answer")
            raise FetchError(f"{self._what}: {told}")
        self._unanswered += 1
        if self._asked_at is None:
            self._asked_at = time.monotonic()

    def answered(self, response: Any) -> None:
        """The head of an answer has come."""
        self._unanswered = 0
        self._stream = response.extensions.get("network_stream")
        if response.status_code < 400:  # else it may be asked again, later and later
            self._asked_at = None

    def check_silence(self) -> None:
        """Raise FetchError if a question was not answered for too long."""
        asked_at = self._asked_at
        if asked_at is not None and time.monotonic() - asked_at > self._patience:
            raise FetchError(
                f"{self._what}: the Hub has not answered for {self._patience:.0f} s: check the "
                "network connection, or run it again later"
            )

    def check_left(self) -> None:
        """Raise where nobody waits any more."""
        if self._left.is_set():
            raise _LeftError

    def leave(self) -> None:
        """Nobody waits any more; wakes the thread if it waits for bytes."""
        self._left.set()
        if self._stream is not None and (raw := self._stream.get_extra_info("socket")):
            with suppress(OSError):
                raw.shutdown(socket.SHUT_RDWR)


_current: ContextVar[_Watch | None] = ContextVar("_current", default=None)


@cache
def _watch_requests() -> None:
    """Let huggingface_hub's requests pass the watch of the thread that makes them.

    For good, and in place of what a program that uses this library may have set.
    """
    from huggingface_hub import constants, get_session, set_client_factory
    from huggingface_hub.utils import logging

    # It would ask for a list of programs first, and tell which of them runs it.
    constants.HF_HUB_DISABLE_TELEMETRY = True

    # It logs every retry; an error says what came of them.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    plain = get_session()
    hooks, kind = plain.event_hooks, type(plain)

    def asking(_request: Any) -> None:
        if watch := _current.get():
            watch.asking()

    def answered(response: Any) -> None:
        if watch := _current.get():
            watch.answered(response)

    def make() -> Any:
        return kind(
            event_hooks={
                "request": [*hooks["request"], asking],
                "response": [*hooks["response"], answered],
            },
            follow_redirects=plain.follow_redirects,
            timeout=plain.timeout,
        )

    set_client_factory(make)
