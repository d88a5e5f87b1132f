"""A GGUF file, memory-mapped: its metadata, its tensors, and their bytes.

Does not know what the bytes of a tensor mean (see `repack`), nor which keys
or tensors a model needs. The mapping is read-only. A file that another program
truncates is noticed before a tensor is read; during that it is beyond what this
module can catch.
"""

import mmap
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from kvcache.errors import reason
from models.errors import GGUFError
from models.gguf.header import TensorInfo, read_header
from models.gguf.metadata import Metadata

_DONTNEED: int | None = getattr(mmap, "MADV_DONTNEED", None)


class GGUFFile:
    """An open GGUF file. Use as a context manager.

    Every `GGUFError` that leaves the `with` block gets the file's path in front,
    so nothing that reads from the file has to know it. `metadata` and `tensors`
    outlive the file; arrays from `rows` keep the mapping alive for as long as
    they are held.
    """

    version: int
    metadata: Metadata
    tensors: dict[str, TensorInfo]
    notes: tuple[str, ...]

    def __init__(self, path: Path | str) -> None:
        """Map the file and check its header. Raises `GGUFError`."""
        self.path = Path(path)
        try:
            self._map: mmap.mmap | None = _map_file(self.path)
            with memoryview(self._map) as buffer:
                header = read_header(buffer)
        except GGUFError as error:
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
        """Let the mapping go; it ends when the last array of `rows` does."""
        self._map = None

    def tensor(self, name: str) -> TensorInfo:
        """The entry of a tensor. Raises `GGUFError` if there is none."""
        if name not in self.tensors:
            raise GGUFError(f"there is no tensor {name!r}, which the model needs")
        return self.tensors[name]

    def rows(self, tensor: str | TensorInfo) -> npt.NDArray[np.uint8]:
        """The bytes of a tensor, or of a part of one, as [rows, row bytes], without a copy.

        A vector is one row; of three or more axes the leading ones are
        flattened. Raises `GGUFError` if there is no such tensor, or no longer.
        """
        info, mapping = self._entry(tensor), self._mapping()
        if mapping.size() < info.offset + info.nbytes:
            raise GGUFError(f"was cut to {mapping.size()} bytes while it was read; get it again")
        data = np.frombuffer(mapping, np.uint8, count=info.nbytes, offset=info.offset)
        return data.reshape(info.rows, -1)

    def release(self, tensor: str | TensorInfo) -> None:
        """Tell the system that the tensor's pages may leave memory for now.

        They come back from the file when read again. Does nothing where the
        platform has no such call.
        """
        info = self._entry(tensor)
        if _DONTNEED is None:
            return
        start = info.offset // mmap.PAGESIZE * mmap.PAGESIZE
        self._mapping().madvise(_DONTNEED, start, info.offset + info.nbytes - start)

    def _entry(self, tensor: str | TensorInfo) -> TensorInfo:
        return tensor if isinstance(tensor, TensorInfo) else self.tensor(tensor)

    def _mapping(self) -> mmap.mmap:
        if self._map is None:
            raise self._named(GGUFError("is closed"))
        return self._map

    def _named(self, error: GGUFError) -> GGUFError:
        return GGUFError(f"{self.path}: {error}")


def _map_file(path: Path) -> mmap.mmap:
    try:
        if path.exists() and not path.is_file():
            raise GGUFError("is a directory or device, expected a GGUF file")
        with path.open("rb") as file:
            if file.seek(0, 2) == 0:
                raise GGUFError("is empty, expected a GGUF file")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise GGUFError(f"cannot be read: {reason(error)}") from error
