"""A file that stays open: its bytes, by plain reads or mapped, and whether it is what it was.

A program that replaces a file by another, as downloads and editors do, leaves the open one as
it is, so that a model goes on. One that writes into the file itself changes it under whoever
computes with it, or has read half of it: that is told by its size and the time of its last
change. Who sets that time back to the nanosecond is not noticed, nor what happens between a
look and the next. Does not know what is in the file.

In Python's own mapping a page that is gone, as the file was cut, ends the process: nothing may
be read of it that a plain read can give. Whoever computes on the bytes has `map_by` make one
that outlives this.
"""

import mmap
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from kvcache.errors import reason
from models.errors import GGUFError
from models.gguf.tensor import Bytes

_MOST_READ = 1 << 30  # bytes; macOS takes no 2 GiB at once


class Mapped(Protocol):
    """A file's bytes in memory."""

    @property
    def data(self) -> Bytes:
        """All of them, read-only."""

    @property
    def is_damaged(self) -> bool:
        """Whether some could not be had, so that zeros were read instead."""


# Of a descriptor the first so many bytes; raises OSError.
Map = Callable[[int, int], Mapped]


class OpenFile:
    """size: bytes when it was opened, of which there is at least one."""

    def __init__(self, path: Path) -> None:
        """Raises GGUFError, as all methods do, with the path in front."""
        self.path = path
        try:
            if path.exists() and not path.is_file():
                raise self.error("is a directory or device, expected a GGUF file")
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self.descriptor)
            found = os.fstat(self.descriptor)
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error
        self.size, self._changed = found.st_size, found.st_mtime_ns
        if self.size == 0:
            raise self.error("is empty, expected a GGUF file")
        self._mapped: Mapped | None = None

    @property
    def data(self) -> Bytes:
        """The bytes in memory, read-only; mapped by Python where nobody has done it."""
        return (self._mapped or self.map_by(_Unguarded)).data

    def map_by(self, make: Map) -> Mapped:
        """Have the bytes in a mapping that `make` makes, from now on."""
        try:
            self._mapped = make(self.descriptor, self.size)
        except (OSError, ValueError) as error:
            self.check()  # Python maps nothing of a file that was cut.
            raise self.error(f"cannot be mapped: {reason(error)}") from error
        return self._mapped

    def read(self, out: memoryview, at: int) -> None:
        """Fill bytes with those from `at` on."""
        left = out.cast("B")
        while left:
            try:
                count = os.preadv(self.descriptor, [left[:_MOST_READ]], at)
            except OSError as error:
                raise self._unreadable(error) from error
            if not count:
                raise self._cut(os.fstat(self.descriptor).st_size)
            left, at = left[count:], at + count

    def check(self) -> None:
        """Raise where it is not what it was, or bytes of it could not be had; a microsecond."""
        try:
            found = os.fstat(self.descriptor)
        except OSError as error:
            raise self._unreadable(error) from error
        if found.st_size < self.size:
            raise self._cut(found.st_size)
        if (found.st_size, found.st_mtime_ns) != (self.size, self._changed):
            raise self.error("was changed while in use; load it again")
        if self._mapped is not None and self._mapped.is_damaged:
            raise self.error("a part of it could not be read; its disk may be failing")

    def error(self, message: str) -> GGUFError:
        """What is said of this file."""
        return GGUFError(f"{self.path}: {message}")

    def _cut(self, size: int) -> GGUFError:
        return self.error(f"was cut to {size} bytes while in use; get it again")

    def _unreadable(self, error: Exception) -> GGUFError:
        return self.error(f"cannot be read: {reason(error)}")


class _Unguarded:
    """By Python; read by nobody as a rule."""

    is_damaged = False

    def __init__(self, descriptor: int, size: int) -> None:
        self.data = np.frombuffer(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ), np.uint8)
