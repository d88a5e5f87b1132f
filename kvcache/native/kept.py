"""The folder of compiled libraries, and which of them are to be trusted.

A library's name ends with the hash of its bytes, which are compared before it is loaded,
since a file that was cut short kills the process. What others can write is never loaded:
they would be us. Knows not what a library is made of: its path begins with a stem.
"""

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kvcache.cache_folder import cache_folder
from kvcache.errors import NativeUnavailableError, reason
from kvcache.native.compilers import SECONDS, go_on

# In a folder of its own, while it is compiled.
_FOLDER = "compiling-"
_OWNER_ONLY = 0o700
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_ASK_SECONDS = 0.1


def kernels_folder() -> Path:
    """Where compiled libraries are kept."""
    return cache_folder() / "native"


def _candidates(stem: Path) -> list[Path]:
    return sorted(stem.parent.glob(f"{stem.name}-*.so"))


def usable(stem: Path) -> Path | None:
    """The library of this stem that we wrote, whole; None where there is none."""
    return next((path for path in _candidates(stem) if _is_usable(path)), None)


def _is_usable(path: Path) -> bool:
    """Whether only we can have written a library, and its bytes are those of its name."""
    try:
        ours = _is_ours(path.parent) and _is_ours(path)
        return ours and path.stem.endswith("-" + _hash(path))
    except OSError:
        return False


def _is_ours(path: Path) -> bool:
    """Whether nobody but us and the system's administrator can write a file or folder."""
    found = path.stat()
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & _OTHERS_WRITE


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


@contextmanager
def staged(stem: Path, count: int) -> Iterator[list[Path]]:
    """So many folders in one of our own, beside where libraries will be; all gone afterwards."""
    with ExitStack() as stack:
        with _told(stem):
            made = tempfile.TemporaryDirectory(
                prefix=_FOLDER, dir=stem.parent, ignore_cleanup_errors=True
            )
            whole = Path(stack.enter_context(made))
            folders = [whole / str(number) for number in range(count)]
            for folder in folders:
                folder.mkdir()
        yield folders


def keep(staged: Path, stem: Path) -> Path:
    """Move what was compiled into its place; what is not usable there goes."""
    with _told(stem):
        for path in _damaged(stem):
            path.unlink(missing_ok=True)
        # Linkers replace the file by one that follows the umask.
        staged.chmod(_OWNER_ONLY)
        return staged.replace(stem.with_name(f"{stem.name}-{_hash(staged)}.so"))


def _damaged(stem: Path) -> list[Path]:
    return [path for path in _candidates(stem) if not _is_usable(path)]


def make_ours(stem: Path) -> None:
    """Make a library's folder, or close it to others; what they may have put there goes.

    Raises NativeUnavailableError where it stays open to them, or cannot be made.
    """
    with _told(stem):
        _close(stem.parent)


def _close(folder: Path) -> None:
    """To others. Raises OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(_OWNER_ONLY, exist_ok=True)
    if _is_ours(folder):
        return
    if folder.stat().st_uid == os.geteuid():
        folder.chmod(_OWNER_ONLY)
        for path in folder.glob("kernels-*.so"):
            path.unlink(missing_ok=True)
    if not _is_ours(folder):
        raise NativeUnavailableError(
            f"the compiled CPU kernels cannot be kept: others can write to {folder}; "
            "point EMBER_CACHE at a folder of your own"
        )


@contextmanager
def _told(stem: Path) -> Iterator[None]:
    """Raises NativeUnavailableError where the folder cannot be written."""
    try:
        yield
    except OSError as error:
        damaged, folder = _damaged(stem), stem.parent
        because = f"{damaged[0]} is damaged or not ours; " if damaged else ""
        raise NativeUnavailableError(
            f"the compiled CPU kernels cannot be kept: {because}cannot write to {folder}: "
            f"{reason(error)}; point EMBER_CACHE at a folder that can be written"
        ) from error


@contextmanager
def turn(stopped: Callable[[], bool] | None) -> Iterator[None]:
    """Wait until nobody else compiles.

    A turn ends with its process, however that ends; what a killed one left half done goes. On a
    disk without locks nobody waits.
    """
    until, folder = time.monotonic() + SECONDS, kernels_folder()
    handle = os.open(folder, os.O_RDONLY)
    try:
        while (is_ours := _lock(handle)) is False:
            go_on(until, stopped)
            time.sleep(_ASK_SECONDS)
        for left in folder.glob(f"{_FOLDER}*") if is_ours else ():
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(handle)


def _lock(handle: int) -> bool | None:
    """Whether it is locked now; None where there are no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
