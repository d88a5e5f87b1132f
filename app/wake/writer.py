"""Writes pieces on a thread of its own, so that who makes their bytes waits for no disk.

A disk that refuses is told of once; what was not written is not there, which is all there is to it.
"""

import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue

from app.wake.folder import PieceFolder
from app.wake.piece import Layout, ended
from kvcache.errors import reason

_WAITING = 8  # parts that may wait in memory for the disk
_LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class _Begin:
    name: str
    layout: Layout


@dataclass(frozen=True)
class _End:
    """whole: whether all of the piece came."""

    whole: bool


_Item = _Begin | _End | bytes | Callable[[], None] | None


class PieceWriter:
    """tell: called, from its thread, with a line for the user where the disk refuses."""

    def __init__(self, folder: PieceFolder, tell: Callable[[str], None]) -> None:
        self._folder, self._tell = folder, tell
        self._items: SimpleQueue[_Item] = SimpleQueue()
        self._room = threading.Semaphore(_WAITING)
        self._told = self._closed = False
        self._thread = threading.Thread(target=self._run, name="pieces", daemon=True)
        self._thread.start()

    def write(self, name: str, layout: Layout, contents: Iterator[bytes]) -> Iterator[None]:
        """Write a piece of what `contents` makes, a step at a time; broken off, it is not there.

        Yields between steps, also while the disk is behind.
        """
        self._items.put(_Begin(name, layout))
        whole = False
        try:
            for part in contents:
                while not self._room.acquire(timeout=_LOOK_SECONDS):
                    yield
                self._items.put(part)
                yield
            whole = True
        finally:
            self._items.put(_End(whole))

    def call(self, run: Callable[[], None]) -> None:
        """Run something there, after all that was written; it may raise OSError."""
        self._items.put(run)

    def close(self, patience: float) -> None:
        """Write what waits, no longer than so many seconds, and end."""
        self._items.put(None)
        self._thread.join(patience)

    # -- on the thread --

    def _run(self) -> None:
        while not self._closed:
            item = self._take()
            try:
                if isinstance(item, _Begin):
                    self._write(item)
                elif callable(item):
                    item()
            except OSError as error:
                self._refused(error)

    def _write(self, piece: _Begin) -> None:
        parts = self._parts()
        try:
            with self._folder.writing(piece.name) as file:
                file.write(piece.layout.header)
                total = zlib.crc32(piece.layout.header)
                for part in parts:
                    file.write(part)
                    total = zlib.crc32(part, total)
                file.write(ended(total))
        except _BrokenOffError:
            return
        except OSError as error:
            self._refused(error)
            self._leave(parts)

    def _leave(self, parts: Iterator[bytes]) -> None:
        """Take what still comes of a piece that cannot be written."""
        try:
            for _ in parts:
                pass
        except _BrokenOffError:
            return

    def _parts(self) -> Iterator[bytes]:
        """What comes of the piece that has begun. Raises _BrokenOffError where not all does."""
        while isinstance(item := self._take(), bytes):
            yield item
        if not (isinstance(item, _End) and item.whole):
            raise _BrokenOffError

    def _take(self) -> _Item:
        item = self._items.get()
        if isinstance(item, bytes):
            self._room.release()
        self._closed |= item is None
        return item

    def _refused(self, error: OSError) -> None:
        if not self._told:
            self._told = True
            self._tell(
                f"chats are not kept ready on disk: {reason(error)} ({self._folder.path}); "
                "what they said is saved, and read again when they are reopened"
            )


class _BrokenOffError(Exception):
    """Whoever made the piece stopped."""
