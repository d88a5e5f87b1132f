"""Downloads from the Hugging Face Hub into its cache, by huggingface_hub.

A download runs on a thread of its own, so that it can be left while a server says
nothing. What the server names (a commit, a hash, a size) is looked at before anything
is done by it, and the file is held to its hash afterwards.
"""

import errno
import shutil
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from kvcache.errors import quoted, reason
from models.errors import FetchError
from models.finding.file_hash import HASH, is_sound
from models.finding.hub import COMMIT, HubFile, hub_folder
from models.finding.progress import Progress, ProgressCallback

_POLL_SECONDS = 0.1
# How long a download that was left is waited for, so that it takes its partial file away.
_LEAVE_SECONDS = 2.0
# A server that has not answered for this many of its time limits never will.
_PATIENCE = 3


def download(wanted: HubFile, report: ProgressCallback, *, sha256: str | None = None) -> Path:
    """Download `wanted` into the Hugging Face cache, and check it by the hash that the Hub states.

    sha256: what that hash must be, should it matter. Safe beside other downloads of the
    same file. An exception from `report`, which is called all the time, ends it. Raises
    FetchError, with the cause and what to do about it.
    """
    watch = _Watch(wanted, sha256)
    items: SimpleQueue[Progress | None] = SimpleQueue()
    path: Future[Path] = Future()

    def tell(progress: Progress) -> None:
        watch.check_left()
        items.put(progress)

    def work() -> None:
        _current.set(watch)
        try:
            path.set_result(_transfer(wanted, watch, tell))
        # Raised again by the thread that waits, whatever it is.
        except BaseException as error:  # noqa: BLE001
            path.set_exception(error)
        items.put(None)

    thread = threading.Thread(target=work, name="download", daemon=True)
    thread.start()
    last: Progress | None = Progress(done_bytes=0, total_bytes=None, label=wanted.file_name)
    try:
        while last is not None:
            report(last)
            watch.check_silence()
            with suppress(Empty):
                last = items.get(timeout=_POLL_SECONDS)
    finally:
        if not path.done():
            watch.leave()
            thread.join(_LEAVE_SECONDS)
    return path.result()


class _LeftError(Exception):
    """Ends a download that nobody waits for."""


class _Watch:
    """What one download's thread asks the Hub, and what the Hub answers.

    stated: the hash of the file, once the Hub has stated it. received: whether it sent any.
    """

    def __init__(self, wanted: HubFile, sha256: str | None) -> None:
        from huggingface_hub import constants

        self.stated: str | None = None
        self.received = False
        self._wanted, self._sha256 = wanted, sha256
        self._left = threading.Event()
        self._asked_at: float | None = None
        self._stream: Any = None
        self._patience = _PATIENCE * constants.HF_HUB_DOWNLOAD_TIMEOUT

    def asking(self) -> None:
        """A request goes out."""
        self.check_left()
        if self._asked_at is None:
            self._asked_at = time.monotonic()

    def answered(self, response: Any) -> None:
        """The head of an answer has come."""
        headers, self._stream = response.headers, response.extensions.get("network_stream")
        if response.status_code < 400:  # else it may be asked again, later and later
            self._asked_at = None
        commit = headers.get("X-Repo-Commit")
        if commit is not None and not COMMIT.fullmatch(commit):
            raise FetchError(
                f"{self._wanted}: the server names {quoted(commit)}, expected a commit"
            )
        self.received |= response.request.method == "GET"
        if response.request.method == "HEAD" and response.status_code < 400:
            self._check_file(headers, redirects=response.status_code >= 300)

    def check_silence(self) -> None:
        """Raise FetchError if a question was not answered for too long."""
        asked_at = self._asked_at
        if asked_at is not None and time.monotonic() - asked_at > self._patience:
            raise FetchError(
                f"{self._wanted}: the Hub has not answered for {self._patience:.0f} s: check the "
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

    def _check_file(self, headers: Mapping[str, str], *, redirects: bool) -> None:
        """What is said of the file, by the same headers as huggingface_hub."""
        linked = headers.get("X-Linked-Etag")
        tag = linked or headers.get("ETag")
        stated = "" if tag is None else tag.removeprefix("W/").strip('"')
        # A redirection may have a tag of its own, before the answer that counts.
        if tag is not None and not (redirects and linked is None and stated.isalnum()):
            self._check_stated(stated)
        self._check_size(headers.get("X-Linked-Size") or headers.get("Content-Length") or "0")

    def _check_stated(self, stated: str) -> None:
        if not HASH.fullmatch(stated):
            raise FetchError(
                f"{self._wanted}: the server states {quoted(stated)}, expected a hash to check the "
                "file by; fetch it in another way, and name its path"
            )
        if self._sha256 not in (None, stated):
            raise FetchError(
                f"{self._wanted}: the Hub now holds another file than the one ember knows; "
                f"to use it as it is: `ember pull {self._wanted}`"
            )
        self.stated = stated

    def _check_size(self, size: str) -> None:
        folder = next(each for each in (hub_folder(), *hub_folder().parents) if each.exists())
        free = shutil.disk_usage(folder).free
        if not (size.isascii() and size.isdigit() and len(size) <= 20):
            raise FetchError(f"{self._wanted}: the server states {quoted(size)} bytes")
        if int(size) > free:
            raise FetchError(
                f"{self._wanted}: no space left in {hub_folder()} ({free / 1e6:.0f} of "
                f"{int(size) / 1e6:.0f} MB free): free some, or set HF_HOME to another disk"
            )


_current: ContextVar[_Watch | None] = ContextVar("_current", default=None)


@cache
def _watch_requests() -> None:
    """Let huggingface_hub's requests pass the watch of the thread that makes them.

    For good, and in place of what a program that uses this library may have set.
    """
    from huggingface_hub import get_session, set_client_factory

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


def _transfer(wanted: HubFile, watch: _Watch, report: ProgressCallback) -> Path:
    path = _fill_cache(wanted, report)
    if watch.stated is None:
        if watch.received:
            raise FetchError(f"{wanted}: the server states no hash to check the file by")
        return path
    if is_sound(path, watch.stated, report):
        return path
    if not watch.received:
        # The damaged file had been in the cache before; it is gone now.
        path = _fill_cache(wanted, report)
        if is_sound(path, watch.stated, report):
            return path
    raise FetchError(
        f"{wanted}: got a file of another hash than {watch.stated[:16]}…, which the Hub "
        "states: the download is damaged or was replaced; fetch it again"
    )


def _fill_cache(wanted: HubFile, report: ProgressCallback) -> Path:
    from huggingface_hub import errors, hf_hub_download
    from huggingface_hub.utils import logging

    # It logs every retry; the error below says what came of them.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    _watch_requests()
    try:
        path = hf_hub_download(
            wanted.repo,
            wanted.file,
            revision=wanted.revision,
            cache_dir=hub_folder(),
            library_name="ember",
            tqdm_class=_bar_class(wanted.file_name, report),
        )
    except errors.HFValidationError as error:
        raise FetchError(f"{wanted}: not a repository name ({error})") from error
    except errors.HTTPError as error:  # type: ignore[attr-defined]  # base of every HTTP failure
        raise FetchError(f"{wanted}: {_http_cause(error, wanted)}") from error
    except OSError as error:
        raise FetchError(f"{wanted}: {_os_cause(error)}") from error
    except RuntimeError as error:  # what hf_xet, the Hub's fast transfer, fails with
        raise FetchError(
            f"{wanted}: the fast transfer failed ({_first_line(error)}): run it again, "
            "or with HF_HUB_DISABLE_XET=1"
        ) from error
    except ValueError as error:  # what an answer that cannot be true ends in
        raise FetchError(f"{wanted}: the download failed ({_first_line(error)})") from error
    return Path(path)


def _http_cause(error: Exception, wanted: HubFile) -> str:
    """Explain a refusal of the Hub; the narrower classes come first."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return (
            f"{wanted.repo} is gated: accept its terms on its Hub page, "
            "then log in with `hf auth login`"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"the Hub has no repository {wanted.repo}, or it is private: "
            "check the spelling, or log in with `hf auth login`"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{wanted.repo} has no revision {wanted.revision!r}: leave out what follows the @"
    if isinstance(error, errors.EntryNotFoundError):
        return f"{wanted.repo} has no file {wanted.file}: names there are case-sensitive"
    if isinstance(error, errors.HfHubHTTPError):
        return f"the Hub answered {error.response.status_code}; try again later"
    return f"the download broke off ({_first_line(error)}); run it again"


def _os_cause(error: OSError) -> str:
    """Explain a failure of the network (LocalEntryNotFoundError) or of the disk."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):
        if isinstance(error.__cause__, errors.OfflineModeIsEnabled):
            return "not in the cache, and HF_HUB_OFFLINE forbids downloading: unset it"
        cause = _first_line(error.__cause__ or error)
        return f"the Hub cannot be reached ({cause}): check the network connection"
    if error.errno == errno.ENOSPC:
        return f"no space left in {hub_folder()}: free some, or set HF_HOME to another disk"
    if error.errno is not None:
        return f"cannot write to {hub_folder()} ({reason(error)}): set HF_HOME to another folder"
    return f"the download failed ({_first_line(error)}); run it again"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _bar_class(label: str, report: ProgressCallback) -> type[Any]:
    """A tqdm that reports instead of drawing.

    huggingface_hub may open two bars for one file, for bytes received and
    bytes written; the greater count is what has been done.
    """
    from huggingface_hub.utils.tqdm import tqdm

    most = 0

    class ReportingBar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            nonlocal most
            self.n += n or 0
            most = max(most, int(self.n))
            total = None if self.total is None else int(self.total)
            report(Progress(done_bytes=most, total_bytes=total, label=label))

    return ReportingBar
