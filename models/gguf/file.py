"""A GGUF file, memory-mapped: its metadata, its tensors, and their bytes.

Does not know what the bytes of a tensor mean (see `decode`), nor which keys or tensors
a model needs. The mapping is read-only, and nothing but the header is read before it is
needed. A file that another program truncates is noticed when a tensor is asked for, and
where it is read; computing on the mapping then is beyond what this module can catch.
"""

import mmap
import os
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from kvcache.errors import reason
from models.errors import GGUFError
from models.gguf.header import TensorInfo, read_header
from models.gguf.metadata import Metadata
from models.gguf.tensor import Bytes, Tensor

_MOST_READ = 1 << 30  # bytes; macOS takes no 2 GiB at once


class GGUFFile:
    """An open GGUF file. Use as a context manager.

    Every `GGUFError` that leaves the `with` block gets the file's path in front,
    so nothing that reads from the file has to know it. `metadata` and `tensors`
    outlive the file; the bytes of a `Tensor` keep the mapping alive for as long as they
    are held, and only reading (`Tensor.read`) needs the file open.
    """

    version: int
    metadata: Metadata
    tensors: dict[str, TensorInfo]
    notes: tuple[str, ...]
    _map: mmap.mmap | None

    def __init__(self, path: Path | str) -> None:
        """Map the file and check its header. Raises `GGUFError`."""
        self.path = Path(path)
        self._fd, self._map = -1, None
        try:
            self._fd = _open(self.path)
            self._map = _map(self._fd)
            with memoryview(self._map) as buffer:
                header = read_header(buffer)
        except GGUFError as error:
            self.close()
            raise self._named(error) from error
        self.version = header.version
        self.metadata = header.metadata
        self.tensors = header.tensors
        self.notes = header.notes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        if isinstance(error, GGUFError):
            raise self._named(error) from error

    def close(self) -> None:
        """Let the mapping go; it ends when the last tensor's bytes do."""
        self._map = None
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def tensor(self, tensor: str | TensorInfo) -> Tensor:
        """A tensor, or a part of one, without a copy.

        A vector's bytes are one row; of three or more axes the leading ones are
        flattened. Raises `GGUFError` if there is no such tensor, or no longer.
        """
        info, mapping = self._entry(tensor), self._mapping()
        if (size := mapping.size()) < info.offset + info.nbytes:
            raise _cut(size)
        data = np.frombuffer(mapping, np.uint8, count=info.nbytes, offset=info.offset)
        return Tensor(
            name=info.name,
            type=info.type,
            shape=info.shape,
            data=data.reshape(info.rows, -1),
            by_reading=partial(self._read, info),
        )

    def _read(self, info: TensorInfo, out: Bytes, start: int) -> None:
        """Rows of a tensor from `start` on, as many as `out` has."""
        self._mapping()
        left, at = out.data.cast("B"), info.offset + start * (info.nbytes // info.rows)
        while left:
            count = os.preadv(self._fd, [left[:_MOST_READ]], at)
            if not count:
                raise _cut(os.fstat(self._fd).st_size)
            left, at = left[count:], at + count

    def _entry(self, tensor: str | TensorInfo) -> TensorInfo:
        if isinstance(tensor, TensorInfo):
            return tensor
        if tensor not in self.tensors:
            raise GGUFError(f"there is no tensor {tensor!r}, which the model needs")
        return self.tensors[tensor]

    def _mapping(self) -> mmap.mmap:
        if self._map is None:
            raise self._named(GGUFError("is closed"))
        return self._map

    def _named(self, error: GGUFError) -> GGUFError:
        return GGUFError(f"{self.path}: {error}")


def _cut(size: int) -> GGUFError:
    return GGUFError(f"was cut to {size} bytes while it was read; get it again")


def _open(path: Path) -> int:
    """A descriptor of a file that is not empty."""
    try:
        if path.exists() and not path.is_file():
            raise GGUFError("is a directory or device, expected a GGUF file")
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise GGUFError(f"cannot be read: {reason(error)}") from error
    if os.fstat(opened).st_size == 0:
        os.close(opened)
        raise GGUFError("is empty, expected a GGUF file")
    return opened


def _map(opened: int) -> mmap.mmap:
    try:
        return mmap.mmap(opened, 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise GGUFError(f"cannot be mapped: {reason(error)}") from error
