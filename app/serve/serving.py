"""A server from its start to its end: socket, threads, signals.

Knows no flag; what is answered is the handler's and the generator's.
"""

import gc
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, TCPServer
from threading import BoundedSemaphore, Condition, Thread
from typing import Any

from app.console import note
from app.interrupt import Cancel, cancel_on_interrupt, end_within
from app.progress import byte_bar, step_bar, token_bar
from app.ranks.company import Company
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
GRACE_SECONDS = 2.0
_SENDING_SECONDS = 1.0
_LOOK_SECONDS = 0.2


class HTTPServer(ThreadingHTTPServer):
    """A thread for each connection, of so many at once."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = _BACKLOG

    def __init__(self, settings: ServerSettings) -> None:
        """Take the address; who connects waits for `answering`. Raises EmberError."""
        self._places, self._open = BoundedSemaphore(_MOST_CONNECTIONS), 0
        self._changed, self._settings = Condition(), settings
        try:
            self.address_family, address = _address(settings.host, settings.port)
            super().__init__(address, BaseRequestHandler)
        except OSError as error:
            raise EmberError(
                f"cannot listen at {settings.host} port {settings.port}: {reason(error)}; "
                "--port 0 takes a free one"
            ) from error

    def server_bind(self) -> None:
        """Without asking for this machine's name, which may take long."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self._settings.host, self.socket.getsockname()[1]

    @contextmanager
    def answering(self, generator: Generator, report: Callable[[str], None]) -> Iterator[None]:
        """Answer all who connect, on threads of its own, within this."""
        self._generator, self._report = generator, report
        Thread(target=self.serve_forever, args=(_LOOK_SECONDS,), name="http", daemon=True).start()
        try:
            yield
        finally:
            self.shutdown()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer one connection."""
        Handler(self._generator, self._settings, self._report, request, client_address, self)

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
        """A connection that broke, whose client has gone, or what we did wrong."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            self._report(f"a connection failed by {type(error).__name__}: {error}")


def serve(path: Path, settings: ServerSettings, company: Company | None = None) -> int:
    """Load a model and answer until a signal says otherwise; returns the exit code.

    company: the ranks that share the model, of which this is the first.
    """
    with cancel_on_interrupt() as cancel, HTTPServer(settings) as http:
        generator = _loaded(path, settings, company, cancel)
        # What is loaded stays: no collection of an answer's garbage looks at it.
        gc.collect()
        gc.freeze()
        for text in generator.served.notes:
            note(text)
        try:
            with (
                live_view(lambda: generator.figures) as report,
                http.answering(generator, report),
            ):
                _tell(generator.served, settings, http.server_port, report)
                while not generator.ended.is_set() and not cancel.wait(_LOOK_SECONDS):
                    pass
                # Who asks now is told that it ends.
                generator.stop_and_join(GRACE_SECONDS)
                http.wait_for_answers(_SENDING_SECONDS)
        except BaseException:  # raised again: a second signal
            end_within(_SENDING_SECONDS, cancel.exit_code or 1)
            raise
        finally:
            generator.stop_and_join()
    if generator.failure is not None:
        raise generator.failure
    return cancel.exit_code


def _loaded(
    path: Path, settings: ServerSettings, company: Company | None, cancel: Cancel
) -> Generator:
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
            company,
            loading=checked(loading),
            counting=checked(counting),
            warming=checked(warming),
        )
        generator = Generator(provider)
        try:
            generator.model_provider.ready.result()
        except BaseException:  # raised again: what the load failed by, or a second signal
            generator.stop_and_join()
            raise
    return generator


def _address(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    family, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    return family, address


def _tell(
    served: LoadedServer, settings: ServerSettings, port: int, report: Callable[[str], None]
) -> None:
    budget = served.budget
    report(
        f"{served.loaded.title} as {served.names[0]}: {budget.sequences} at once, "
        f"{served.window:,} tokens each, in {budget.total / 2**20:,.0f} MiB"
    )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    report(f"http://{host}:{port}/v1")
