"""A Hub on this machine, for tests: serves files as the real one does, or refuses them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import huggingface_hub.constants
import pytest

from tests.models.samples import COMMIT, CONTENT


@dataclass
class FakeHub:
    """What the server answers; `url` is filled in once it runs.

    files: contents by URL path; status and code: the refusal of everything
    else; cut: bytes after which a body breaks off; gets: paths downloaded.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    status: int = 404
    code: str = "EntryNotFound"
    cut: int | None = None
    gets: list[str] = field(default_factory=list)
    url: str = ""

    def add(self, repo: str, file: str, content: bytes = CONTENT) -> None:
        """Publish a file under its repository's `main`."""
        self.files[f"/{repo}/resolve/main/{file}"] = content


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            hub.gets.append(self.path)
            content = self.answer()
            self.wfile.write(content[: hub.cut])

        def answer(self) -> bytes:
            content = hub.files.get(self.path)
            if content is None:
                self.send_response(hub.status)
                self.send_header("X-Error-Code", hub.code)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return b""
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
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
        server.shutdown()
        server.server_close()
        thread.join()
