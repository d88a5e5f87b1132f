"""Downloaded files by the hash that the Hub, or its cache on this machine, states of them."""

import hashlib
import re
from pathlib import Path

from kvcache.errors import reason
from models.errors import FetchError
from models.finding.progress import Progress, ProgressCallback

# The Hub states the sha256 of a large file, and of a small one the hash that git gives it.
HASH = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
_SHA256_DIGITS = 64
_CHUNK = 1 << 22


def stated_hash(path: Path) -> str | None:
    """The hash that the cache names a file's blob by, None where it does not say."""
    name = path.readlink().name if path.is_symlink() else ""
    return name if HASH.fullmatch(name) else None


def is_sound(path: Path, stated: str, report: ProgressCallback) -> bool:
    """Hold a model's file to its hash; a damaged one is taken away, with the blob it links to.

    Only one link is followed: the blob may itself link to a store of all caches.
    Raises FetchError where it can be neither read nor removed.
    """
    try:
        if _hash(path, stated, report) == stated:
            return True
        blob = path.parent / path.readlink() if path.is_symlink() else path
        for file in {path, blob}:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise FetchError(f"{path}: cannot be checked and renewed ({reason(error)})") from error
    return False


def _hash(path: Path, stated: str, report: ProgressCallback) -> str:
    """The file's hash, of the kind of `stated`."""
    size, done = path.stat().st_size, 0
    if len(stated) == _SHA256_DIGITS:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            report(Progress(done_bytes=done, total_bytes=size, label="checking"))
    return digest.hexdigest()
