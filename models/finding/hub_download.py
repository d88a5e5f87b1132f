"""Downloads from the Hugging Face Hub into its cache, which go on where they broke off.

The bytes come by HTTP ranges and not by huggingface_hub's own download, which throws away what
it has when it is killed. They stand beside the finished blobs under the hash that the Hub
states, so that nothing can go on with a file that has become another, and become a blob of the
cache only once they have that hash. What the server names (a commit, a hash, a size) is looked
at before anything is done by it.
"""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kvcache.errors import quoted, reason
from models.errors import FetchError
from models.finding.file_hash import HASH, is_sound
from models.finding.hub import COMMIT, HubFile, file_size, hub_folder, repo_folder
from models.finding.hub_asking import ask
from models.finding.hub_errors import explained
from models.finding.progress import Progress, ProgressCallback, size_text
from models.finding.receive import receive

# As huggingface_hub names what is not whole, so that its tools take it for that.
_PARTIAL = ".ember.incomplete"
_STALE_SECONDS = 14 * 24 * 60 * 60
_WAIT_SECONDS = 0.2


def download(wanted: HubFile, report: ProgressCallback, *, sha256: str | None = None) -> Path:
    """Download `wanted` into the Hugging Face cache, and check it by the hash that the Hub states.

    sha256: what that hash must be, should it matter. Safe beside other downloads of the
    same file. An exception from `report`, which is called all the time, ends it; what has come
    is kept, and told in a note of the exception. Raises FetchError, with the cause and what to
    do about it.
    """
    made = _Download(wanted, sha256)
    try:
        return ask(str(wanted), made.run, report, label=wanted.file_name)
    except BaseException as error:
        if kept := made.kept():
            error.add_note(kept)
        raise


@dataclass(frozen=True, kw_only=True)
class _Stated:
    """What the Hub states of a file."""

    commit: str
    hash: str
    size: int


class _Download:
    """One file on its way into the cache."""

    def __init__(self, wanted: HubFile, sha256: str | None) -> None:
        self._wanted, self._sha256 = wanted, sha256
        self._blobs = repo_folder(wanted.repo) / "blobs"
        self._stated: _Stated | None = None

    def run(self, tell: ProgressCallback) -> Path:
        """The file in the cache, once it is there and sound."""
        stated = self._stated = self._ask()
        blob = self._blobs / stated.hash
        with self._writing():
            if file_size(blob) is None or not is_sound(blob, stated.hash, tell):
                self._blobs.mkdir(parents=True, exist_ok=True)
                _sweep(self._blobs)
                self._fetch(stated, blob, tell)
            return self._link(stated.commit, blob)

    def kept(self) -> str:
        """How much has come of a file that is not whole, for the user; nothing where none has."""
        stated = self._stated
        have = stated and file_size(self._partial(stated))
        if not stated or not have:
            return ""
        return (
            f"{size_text(have)} of {size_text(stated.size)} are kept: the same again goes on there"
        )

    def _partial(self, stated: _Stated) -> Path:
        return self._blobs / f"{stated.hash}{_PARTIAL}"

    def _ask(self) -> _Stated:
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

        wanted = self._wanted
        with explained(wanted):
            url = hf_hub_url(wanted.repo, wanted.file, revision=wanted.revision)
            told = get_hf_file_metadata(
                url,
                timeout=constants.HF_HUB_ETAG_TIMEOUT,
                library_name="ember",
                retry_on_errors=True,
            )
        if told.commit_hash is None or not COMMIT.fullmatch(told.commit_hash):
            raise FetchError(
                f"{wanted}: the server names {quoted(told.commit_hash)}, expected a commit"
            )
        if told.etag is None or not HASH.fullmatch(told.etag):
            raise FetchError(
                f"{wanted}: the server states {quoted(told.etag)}, expected a hash to check the "
                "file by; fetch it in another way, and name its path"
            )
        if self._sha256 not in (None, told.etag):
            raise FetchError(
                f"{wanted}: the Hub now holds another file than the one ember knows; "
                f"to use it as it is: `ember pull {wanted}`"
            )
        if told.size is None or told.size <= 0:
            raise FetchError(f"{wanted}: the server states {told.size} bytes")
        return _Stated(commit=told.commit_hash, hash=told.etag, size=told.size)

    def _fetch(self, stated: _Stated, blob: Path, tell: ProgressCallback) -> None:
        """Bring the blob here, alone: who comes second waits, and finds it."""
        self._check_room(stated, file_size(self._partial(stated)) or 0)
        for attempt in range(2):
            with self._alone(stated, blob, tell) as file:
                if file is None:
                    return
                resumed = self._receive(stated, file, tell)
                partial = self._partial(stated)
                if is_sound(partial, stated.hash, tell):
                    partial.replace(blob)
                    return
            # What an earlier try left, or another program beside it, may be at fault.
            if not resumed or attempt:
                break
        raise FetchError(
            f"{self._wanted}: got a file of another hash than {stated.hash[:16]}…, which the Hub "
            "states: the download is damaged or was replaced; fetch it again"
        )

    def _receive(self, stated: _Stated, file: BinaryIO, tell: ProgressCallback) -> bool:
        """All bytes that are missing; returns whether some were there."""
        have = file.seek(0, os.SEEK_END)
        if have > stated.size:
            have = file.truncate(0)
            file.seek(0)
        receive(self._wanted, stated.commit, file, stated.size, tell)
        file.flush()
        return have > 0

    @contextmanager
    def _alone(
        self, stated: _Stated, blob: Path, tell: ProgressCallback
    ) -> Iterator[BinaryIO | None]:
        """The partial file, held by nobody else; None once another has made the blob of it.

        Where the file system knows no locks two may write at once, which the hash tells.
        """
        path = self._partial(stated)
        while True:
            with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    done = file_size(path) or 0
                    label = f"{self._wanted.file_name} (by another program)"
                    tell(Progress(done_bytes=done, total_bytes=stated.size, label=label))
                    time.sleep(_WAIT_SECONDS)
                    continue
                except OSError:
                    pass
                if file_size(blob) is not None:
                    path.unlink(missing_ok=True)
                    yield None
                    return
                if _is_at(file, path):
                    yield file
                    return

    def _check_room(self, stated: _Stated, have: int) -> None:
        free, missing = shutil.disk_usage(self._blobs).free, stated.size - have
        if missing > free:
            raise FetchError(
                f"{self._wanted}: no space left in {hub_folder()} ({free / 1e6:.0f} of "
                f"{missing / 1e6:.0f} MB free): free some, or set HF_HOME to another disk"
            )

    def _link(self, commit: str, blob: Path) -> Path:
        """Give the blob its name in the cache, as huggingface_hub does."""
        folder, wanted = repo_folder(self._wanted.repo), self._wanted
        path = folder / "snapshots" / commit / wanted.file
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.unlink(missing_ok=True)
            with suppress(FileExistsError):  # which another download has made since
                path.symlink_to(os.path.relpath(blob, path.parent))
        if wanted.revision != commit:
            ref = folder / "refs" / wanted.revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit, encoding="ascii")
        return path

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn a failure to write into a FetchError that says what to do."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                what, todo = "no space left in", "free some, or set HF_HOME to another disk"
            else:
                what, todo = "cannot write to", "set HF_HOME to another folder"
            raise FetchError(
                f"{self._wanted}: {what} {hub_folder()} ({reason(error)}): {todo}"
            ) from error


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _sweep(blobs: Path) -> None:
    """Remove what was begun long ago and never gone on with."""
    for path in blobs.glob(f"*{_PARTIAL}"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()
