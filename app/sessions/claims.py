"""Which chats this program has open, so that no other one writes them: a locked file each.

A lock goes with its program, however that ends. Knows no chat, only numbers.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from app import private


class Claims:
    """folder: where the locks are; None where no other program can have the chats."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._held: dict[int, int] = {}

    def take(self, number: int) -> bool:
        """Claim a chat; False where another program has it open.

        True on a disk without locks, where nobody can tell.
        """
        if self.folder is None or number in self._held:
            return True
        try:
            private.make_folder(self.folder)
            handle = os.open(self._path(number), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:
            return True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_gone = not os.fstat(handle).st_nlink
        except BlockingIOError:
            os.close(handle)
            return False
        except OSError:
            os.close(handle)
            return True
        if is_gone:
            # Released, and so removed, between the two: others would lock another file.
            os.close(handle)
            return self.take(number)
        self._held[number] = handle
        return True

    def release(self, number: int) -> None:
        """Let others have a chat."""
        handle = self._held.pop(number, None)
        if handle is not None:
            with suppress(OSError):
                self._path(number).unlink()
            os.close(handle)

    def close(self) -> None:
        """Let others have all of them."""
        for number in list(self._held):
            self.release(number)

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{number}.open"
