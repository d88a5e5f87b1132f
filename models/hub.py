"""Files on the Hugging Face Hub and in its cache on this machine.

The cache belongs to all programs that use the Hub. Looking into it needs no
network and writes nothing; `download` hands over to huggingface_hub, which is
imported only then. Layout (huggingface_hub, "Understand caching"):

    HUB/models--OWNER--REPO/refs/REVISION            the commit it stands for
    HUB/models--OWNER--REPO/snapshots/COMMIT/FILE -> ../../blobs/SHA256
"""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from models.errors import FetchError
from models.progress import Progress, ProgressCallback

MAIN = "main"


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """One file of one model repository, at one revision (a branch, tag or commit)."""

    repo: str
    file: str
    revision: str = MAIN

    def __post_init__(self) -> None:
        parts = f"{self.repo}/{self.file}/{self.revision}".split("/")
        if self.repo.count("/") != 1 or {"", ".", ".."} & set(parts):
            raise ValueError(f"{self}: expected hf:OWNER/REPO/FILE")

    def __str__(self) -> str:
        """The spec that a user types; `models.source.parse` reads it back."""
        suffix = "" if self.revision == MAIN else f"@{self.revision}"
        return f"hf:{self.repo}/{self.file}{suffix}"

    @property
    def file_name(self) -> str:
        """The last part of the file's path."""
        return PurePosixPath(self.file).name


def hub_folder() -> Path:
    """The Hugging Face cache, by the same environment variables as huggingface_hub."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if folder := os.environ.get(variable):
            return _expanded(folder)
    if home := os.environ.get("HF_HOME"):
        return _expanded(home) / "hub"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(cache) / "huggingface" / "hub"


def repo_folder(repo: str) -> Path:
    """Where the cache keeps `OWNER/REPO`, present or not."""
    return hub_folder() / f"models--{repo.replace('/', '--')}"


def commit_of(folder: Path, revision: str) -> str | None:
    """The commit that a repository's cache folder knows `revision` by, or None."""
    try:
        return (folder / "refs" / revision).read_text(encoding="ascii").strip() or None
    except (OSError, ValueError):
        return None


def cached(wanted: HubFile) -> Path | None:
    """The cached copy of `wanted` at its revision, or None."""
    folder = repo_folder(wanted.repo)
    commit = commit_of(folder, wanted.revision) or wanted.revision
    path = folder / "snapshots" / commit / wanted.file
    return path if file_size(path) is not None else None


def cached_revisions(wanted: HubFile) -> Iterator[Path]:
    """Every cached copy of `wanted`'s file, its own revision first."""
    if first := cached(wanted):
        yield first
    snapshots = repo_folder(wanted.repo) / "snapshots"
    try:
        commits = sorted(snapshots.iterdir())
    except OSError:
        return
    for commit in commits:
        path = commit / wanted.file
        if path != first and file_size(path) is not None:
            yield path


def file_size(path: Path) -> int | None:
    """Bytes of a regular file; None where there is none, or none that may be looked at."""
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def download(wanted: HubFile, report: ProgressCallback) -> Path:
    """Download `wanted` into the Hugging Face cache.

    Safe beside other downloads of the same file. Raises FetchError, with the
    cause and what to do about it.
    """
    from huggingface_hub import errors, hf_hub_download
    from huggingface_hub.utils import logging

    # It logs every retry; the error below says what came of them.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
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
        return f"cannot write to {hub_folder()} ({error.strerror}): set HF_HOME to another folder"
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


def _expanded(folder: str) -> Path:
    return Path(os.path.expandvars(folder)).expanduser()
