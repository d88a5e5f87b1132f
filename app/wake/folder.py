"""The folder of pieces: whole files that nobody else may read, bounded, the least used gone first.

A piece is made under another name and moved into its place when it is whole, so that a program
that is killed leaves nothing that is read; what it left is swept away. Names say what a piece is:
PLAN.HASH.KIND.safetensors. Several programs may use the folder at once: a piece of a name has one
content, and one that has gone is as one that was never there.
"""

import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from app import private
from app.wake.piece import LENGTH_BYTES, MOST_HEADER
from kvcache.cache_folder import cache_folder

DEFAULT_BYTES = 2 << 30
_SUFFIX = ".safetensors"
_STAGED = ".piece-"
_STALE_SECONDS = 60 * 60
_STEP = 1_000  # nanoseconds between pieces that are used at the same time


def default_folder() -> Path:
    """In ember's cache folder."""
    return cache_folder() / "kept"


@dataclass(frozen=True, kw_only=True)
class Found:
    """A piece in the folder. used: when it was last, in nanoseconds."""

    name: str
    nbytes: int
    used: int


class PieceFolder:
    """most: bytes of all pieces together. asleep: of those that nobody needs now; None: as all."""

    def __init__(self, path: Path, most: int = DEFAULT_BYTES, *, asleep: int | None = None) -> None:
        self.path, self.most = path, most
        self.asleep = most if asleep is None else asleep

    def pieces(self) -> dict[str, Found]:
        """All that are there, by name; none where the folder cannot be read."""
        found = {}
        with suppress(OSError), os.scandir(self.path) as entries:
            for entry in entries:
                if not entry.name.endswith(_SUFFIX) or entry.name.startswith("."):
                    continue
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if entry.is_file(follow_symlinks=False):
                        name = entry.name.removesuffix(_SUFFIX)
                        used = status.st_mtime_ns
                        found[name] = Found(name=name, nbytes=status.st_size, used=used)
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all pieces."""
        return sum(each.nbytes for each in self.pieces().values())

    def read(self, name: str, count: int = -1, at: int = 0) -> bytes | None:
        """So many bytes of a piece, or what it has of them; None where it is not there.

        Of no piece more than all may have together.
        """
        try:
            with self._place(name).open("rb") as file:
                file.seek(at)
                return file.read(self.most if count < 0 else min(count, self.most))
        except OSError:
            return None

    def head(self, name: str) -> bytes:
        """The header of a piece, as far as it has one; none where it is not there."""
        length = int.from_bytes(self.read(name, LENGTH_BYTES) or b"", "little")
        return self.read(name, min(length, MOST_HEADER) + LENGTH_BYTES) or b""

    def remove(self, name: str) -> None:
        """A piece that is of no use goes."""
        with suppress(OSError):
            self._place(name).unlink()

    def use(self, names: Iterable[str]) -> None:
        """Note that these are used now; the first of them will be the last to go."""
        now = time.time_ns()
        for at, name in enumerate(names):
            with suppress(OSError):
                os.utime(self._place(name), ns=(now - at * _STEP,) * 2)

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """A file that becomes the piece where the block ends well. Raises OSError."""
        private.make_folder(self.path)
        private.narrow([self.path])
        handle, staged = tempfile.mkstemp(prefix=_STAGED, dir=self.path)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            Path(staged).replace(self._place(name))
        finally:
            with suppress(OSError):
                Path(staged).unlink(missing_ok=True)

    def bound(self, wanted: Iterable[str] = ()) -> None:
        """Remove what is too much: first what is not wanted, and of both the least used."""
        self._sweep()
        found, needed = self.pieces(), frozenset(wanted)
        total = sum(each.nbytes for each in found.values())
        asleep = sum(each.nbytes for name, each in found.items() if name not in needed)
        for each in sorted(found.values(), key=lambda each: (each.name in needed, each.used)):
            if total <= self.most and asleep <= self.asleep:
                return
            self.remove(each.name)
            total -= each.nbytes
            asleep -= 0 if each.name in needed else each.nbytes

    def clear(self) -> int:
        """Remove all pieces; returns how many bytes they were."""
        found = self.pieces()
        for name in found:
            self.remove(name)
        return sum(each.nbytes for each in found.values())

    def _place(self, name: str) -> Path:
        return self.path / f"{name}{_SUFFIX}"

    def _sweep(self) -> None:
        """Remove what a killed program left behind, once nobody can still be at work on it."""
        with suppress(OSError):
            for staged in self.path.glob(f"{_STAGED}*"):
                with suppress(OSError):
                    if time.time() - staged.stat().st_mtime > _STALE_SECONDS:
                        staged.unlink()
