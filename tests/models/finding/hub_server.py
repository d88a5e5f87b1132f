"""A Hub on this machine, for tests: serves files as the real one does, or refuses them."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import huggingface_hub.constants
import pytest

from tests.models.samples import COMMIT, CONTENT


@dataclass
class FakeHub:
    """What the server answers; `url` is filled in once it runs.

    files: contents by URL path; status and code: the refusal of everything
    else; cut: bytes after which a body breaks off; gets: paths downloaded.
    moved: headers of redirections by path. headers: what it states instead of the truth.
    silent: the method that it does not answer, or "body", of which it sends half, until
    `released`; `waiting` once it has come to that.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    status: int = 404
    code: str = "EntryNotFound"
    cut: int | None = None
    gets: list[str] = field(default_factory=list)
    url: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    moved: dict[str, dict[str, str]] = field(default_factory=dict)
    silent: str = ""
    waiting: Event = field(default_factory=Event)
    released: Event = field(default_factory=Event)

    def add(self, repo: str, file: str, content: bytes = CONTENT) -> None:
        """Publish a file under its repository's `main`."""
        self.files[f"/{repo}/resolve/main/{file}"] = content

    def redirect(self, repo: str, file: str, headers: dict[str, str]) -> None:
        """Answer for a file of another name, with these headers, by where it is now."""
        self.moved[f"/{repo}/resolve/main/moved-{file}"] = {
            "Location": f"/{repo}/resolve/main/{file}",
            **headers,
        }

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        if path in self.moved:
            return 307, {"Content-Length": "0"} | self.moved[path], b""
        content = self.files.get(path)
        if content is None:
            refusal = {"X-Error-Code": self.code, "Content-Length": "0"}
            return self.status, refusal | self.headers, b""
        true = {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{sha256(content).hexdigest()}"',
            "Content-Length": str(len(content)),
        }
        return 200, true | self.headers, content

    def fall_silent(self) -> None:
        """Say nothing until told to go on."""
        self.waiting.set()
        self.released.wait(60)


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            hub.gets.append(self.path)
            content = self.answer()
            if hub.silent == "body":
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                hub.fall_silent()
                return
            with suppress(ConnectionError):
                self.wfile.write(content[: hub.cut])

        def answer(self) -> bytes:
            if hub.silent == self.command:
                hub.fall_silent()
            status, headers, content = hub.answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            return content

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # inherited name
            """Stay quiet."""

    return Handler


@contextmanager
def running_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Run a FakeHub on the loopback interface and point huggingface_hub at it."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    constants = huggingface_hub.constants
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
