"""A Hub on this machine, for tests: serves files as the real one does, or refuses them."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub.constants
import pytest

from tests.models.samples import COMMIT, CONTENT

HEAD = "HEAD"
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/[^/]+/(?P<file>.+)")
_REPO = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+?)(?:/revision/[^/]+)?")


@dataclass
class FakeHub:
    """What the server answers; `url` is filled in once it runs.

    files: contents by URL path; status and code: the refusal of everything
    else; cut: bytes after which a body breaks off; gets: paths downloaded.
    ranges: what was asked for of each of them; has_ranges: whether that is heeded.
    busy: so many downloads are refused first.
    asked: paths of the API, with their queries. told: what it says of repositories.
    moved: headers of redirections by path. headers: what it states instead of the truth.
    silent: the method that it does not answer, or "body", of which it sends half, until
    `released`; `waiting` once it has come to that.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    status: int = 404
    code: str = "EntryNotFound"
    cut: int | None = None
    gets: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    has_ranges: bool = True
    busy: int = 0
    asked: list[str] = field(default_factory=list)
    told: dict[str, dict[str, Any]] = field(default_factory=dict)
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

    def answer(self, path: str, asked: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body. asked: for which range of it, or HEAD."""
        if path.startswith("/api/"):
            return self._told(path)
        path = unquote(path).replace(f"/{COMMIT}/", "/main/")
        if asked != HEAD and self.busy:
            self.busy -= 1
            return 503, {"Content-Length": "0"}, b""
        if path in self.moved:
            return 307, {"Content-Length": "0"} | self.moved[path], b""
        content = self.files.get(path)
        if content is None:
            return self._refusal()
        true = {"X-Repo-Commit": COMMIT, "ETag": f'"{sha256(content).hexdigest()}"'}
        status, size = 200, len(content)
        if self.has_ranges and (part := re.fullmatch(r"bytes=(\d+)-(\d*)", asked)):
            first, last = int(part[1]), min(int(part[2] or size), size - 1)
            if first >= size:
                return 416, {"Content-Length": "0"}, b""
            true["Content-Range"] = f"bytes {first}-{last}/{size}"
            status, content = 206, content[first : last + 1]
        true["Content-Length"] = str(len(content))
        return status, true | self.headers, content

    def fall_silent(self) -> None:
        """Say nothing until told to go on."""
        self.waiting.set()
        self.released.wait(60)

    def _told(self, path: str) -> tuple[int, dict[str, str], bytes]:
        self.asked.append(path)
        address = urlsplit(path)
        if address.path == "/api/models":
            words = parse_qs(address.query)["search"][0].casefold()
            found = [each for each in self._repos() if words in each.casefold()]
            return self._json([{"id": each, **self.told.get(each, {})} for each in found])
        match = _REPO.fullmatch(unquote(address.path))
        repo = match["repo"] if match else ""
        if repo not in self._repos():
            return self._refusal()
        return self._json({"id": repo, "sha": COMMIT, "siblings": list(self._siblings(repo))})

    def _repos(self) -> list[str]:
        paths = (_FILE.fullmatch(path) for path in self.files)
        return list(dict.fromkeys(path["repo"] for path in paths if path))

    def _siblings(self, repo: str) -> Iterator[dict[str, Any]]:
        for path, content in self.files.items():
            match = _FILE.fullmatch(path)
            if match and match["repo"] == repo:
                lfs = {"sha256": sha256(content).hexdigest(), "size": len(content)}
                yield {
                    "rfilename": match["file"],
                    "size": len(content),
                    "blobId": "0" * 40,
                    "lfs": {**lfs, "pointerSize": 130},
                }

    def _json(self, answer: Any) -> tuple[int, dict[str, str], bytes]:
        body = json.dumps(answer).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        return 200, headers, body

    def _refusal(self) -> tuple[int, dict[str, str], bytes]:
        refusal = {"X-Error-Code": self.code, "Content-Length": "0"}
        return self.status, refusal | self.headers, b""


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            if not self.path.startswith("/api/"):
                hub.gets.append(self.path)
                hub.ranges.append(self.headers.get("Range", ""))
            content = self.answer()
            if hub.silent == "body" and not self.path.startswith("/api/"):
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                hub.fall_silent()
                return
            with suppress(ConnectionError):
                self.wfile.write(content[: hub.cut])

        def answer(self) -> bytes:
            if hub.silent == self.command:
                hub.fall_silent()
            asked = HEAD if self.command == HEAD else self.headers.get("Range", "")
            status, headers, content = hub.answer(self.path, asked)
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
    monkeypatch.setenv("HF_ENDPOINT", hub.url)  # for programs that a test starts
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
