"""Ember's own model folder, and what of the catalogue is on this machine.

Files enter the folder whole and checked or not at all: they are made in a
temporary folder beside it and moved in at the end, so processes that fetch the
same file at once do not meet. Knows nothing of where the bytes come from.
"""

import errno
import hashlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kvcache.cache_folder import cache_folder
from kvcache.errors import reason
from models.errors import FetchError
from models.finding.entry import CatalogueEntry
from models.finding.hub import cached_revisions, file_size

_STAGING_PREFIX = ".fetch-"
_STALE_SECONDS = 24 * 60 * 60


def models_folder() -> Path:
    """Where ember keeps what it fetched itself: `models` in EMBER_CACHE or the user's cache."""
    return cache_folder() / "models"


def own_path(entry: CatalogueEntry) -> Path:
    """Where ember's own folder has a catalogue entry's file, present or not."""
    return models_folder() / entry.hub.file_name


def installed(entry: CatalogueEntry) -> Path | None:
    """The file of a catalogue entry in ember's folder or the Hugging Face cache, or None.

    Told by its name and, where it is known, exact size; hashes are checked when a file is
    fetched.
    """
    for path in (own_path(entry), *cached_revisions(entry.hub)):
        size = file_size(path)
        if size is not None and entry.size in (size, None):
            return path
    return None


@contextmanager
def staging_folder(room_bytes: int) -> Iterator[Path]:
    """A fresh folder on the same disk as the models, gone afterwards whatever happens.

    Raises FetchError where it cannot be made or the disk has less than `room_bytes` free.
    """
    folder = models_folder()
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        stage = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=folder))
    try:
        free = shutil.disk_usage(stage).free
        if free < room_bytes:
            raise _no_space(folder, f"{free / 10**6:.0f} of {room_bytes / 10**6:.0f} MB free")
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn a failure to write into a FetchError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(folder, reason(error)) from error
        raise FetchError(
            f"cannot write to {folder} ({reason(error)}): set EMBER_CACHE to a folder that can be "
            "written"
        ) from error


def keep(staged: Path) -> Path:
    """Move a finished file from its staging folder into ember's folder, in one step."""
    target = models_folder() / staged.name
    with writing_to(target.parent):
        staged.replace(target)
    return target


def check_file(path: Path, entry: CatalogueEntry) -> None:
    """Raise FetchError unless the file is, byte for byte, the one the entry names."""
    size = path.stat().st_size
    assert entry.sha256 is not None  # which every file of a wheel has
    if size != entry.size:
        raise FetchError(f"{entry.name}: got {size} bytes, expected {entry.size}; fetch it again")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != entry.sha256:
        raise FetchError(
            f"{entry.name}: got sha256 {digest[:16]}…, expected {entry.sha256[:16]}…: "
            "the download is damaged or was replaced; fetch it again"
        )


def _no_space(folder: Path, because: str) -> FetchError:
    return FetchError(
        f"no space left in {folder} ({because}): free some, or set EMBER_CACHE to another disk"
    )


def _sweep(folder: Path) -> None:
    """Remove what a killed process left behind, once nobody can still be at work on it."""
    for stage in folder.glob(f"{_STAGING_PREFIX}*"):
        with suppress(OSError):
            if time.time() - stage.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(stage)
