"""A server from its start to its end: socket, threads, signals.

Knows no flag; what is answered is the handler's and the generator's.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler
from threading import BoundedSemaphore, Condition, Thread
from typing import Any

from app.console import note
from app.interrupt import Cancel, cancel_on_interrupt
from app.progress import byte_bar, step_bar, token_bar
from app.serve.generator import Generator
from app.serve.handler import Handler
from app.serve.live_view import live_view
from app.serve.model_provider import LoadedServer, ModelProvider
from app.serve.server_settings import ServerSettings
from app.session import COUNTING
from kvcache.errors import EmberError, reason

# Connections at once, each with a thread; others wait in the system's queue.
_MOST_CONNECTIONS = 512
_BACKLOG = 256
# Answers that run are finished within so many seconds of a signal, or cut.
GRACE_SECONDS = 3.0
_SENDING_SECONDS = 1.0
_LOOK_SECONDS = 0.2


class HTTPServer(ThreadingHTTPServer):
    """A thread for each connection, of so many at once."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = _BACKLOG

    def __init__(
        self, generator: Generator, settings: ServerSettings, report: Callable[[str], None]
    ) -> None:
        self._places, self._open = BoundedSemaphore(_MOST_CONNECTIONS), 0
        self._changed = Condition()
        self._given = generator, settings, report
        self.address_family, address = _address(settings.host, settings.port)
        super().__init__(address, BaseRequestHandler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer one connection."""
        Handler(*self._given, request, client_address, self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Have a thread answer, once there is a place for it."""
        self._places.acquire()
        self._count(1)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """On that thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()
            self._count(-1)

    def wait_for_answers(self, seconds: float) -> None:
        """Until all that is computed has been sent, but no longer than this."""
        with self._changed:
            self._changed.wait_for(lambda: not self._open, seconds)

    def _count(self, more: int) -> None:
        with self._changed:
            self._open += more
            self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke; nobody is there to be told."""


def serve(path: Path, settings: ServerSettings) -> int:
    """Load a model and answer until a signal says otherwise; returns the exit code."""
    with cancel_on_interrupt() as cancel:
        generator = _loaded(path, settings, cancel)
        served = generator.served
        for text in served.notes:
            note(text)
        try:
            with (
                live_view(lambda: generator.figures) as report,
                listening(generator, settings, report) as http,
            ):
                _tell(served, settings, http.server_port)
                while not generator.ended.is_set() and not cancel.wait(_LOOK_SECONDS):
                    pass
                # Who asks now is told that it ends.
                generator.stop_and_join(GRACE_SECONDS)
                http.wait_for_answers(_SENDING_SECONDS)
        finally:
            generator.stop_and_join()
    if generator.failure is not None:
        raise generator.failure
    return cancel.exit_code


@contextmanager
def listening(
    generator: Generator, settings: ServerSettings, report: Callable[[str], None]
) -> Iterator[HTTPServer]:
    """A server on a thread of its own."""
    try:
        http = HTTPServer(generator, settings, report)
    except OSError as error:
        raise EmberError(
            f"cannot listen at {settings.host} port {settings.port}: {reason(error)}; "
            "--port 0 takes a free one"
        ) from error
    thread = Thread(target=http.serve_forever, args=(_LOOK_SECONDS,), name="http", daemon=True)
    thread.start()
    try:
        yield http
    finally:
        http.shutdown()
        http.server_close()


def _loaded(path: Path, settings: ServerSettings, cancel: Cancel) -> Generator:
    """A generator whose model is loaded, with a bar for what takes time."""
    with (
        byte_bar("loading") as loading,
        token_bar(COUNTING) as counting,
        step_bar("compiling the GPU kernels") as warming,
    ):

        def checked(told: Callable[[int, int], None]) -> Callable[[int, int], None]:
            def tell(done: int, total: int) -> None:
                cancel.check()
                told(done, total)

            return tell

        provider = ModelProvider(
            path,
            settings,
            loading=checked(loading),
            counting=checked(counting),
            warming=checked(warming),
        )
        generator = Generator(provider)
        provider.ready.exception()
    if (failed := provider.ready.exception()) is not None:
        generator.ended.wait()
        raise failed
    return generator


def _address(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    family, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return family, address


def _tell(served: LoadedServer, settings: ServerSettings, port: int) -> None:
    budget = served.budget
    note(
        f"{served.loaded.title} as {served.names[0]}: {budget.sequences} at once, "
        f"{served.window:,} tokens each, in {budget.total / 2**20:,.0f} MiB"
    )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    note(f"http://{host}:{port}/v1")
