"""A GGUF file: its metadata, its tensors, and their bytes.

Does not know what the bytes of a tensor mean (see `decode`), nor which keys or tensors
a model needs. The header is read; the data is mapped, read-only, and not touched before
somebody does. See `open_file` for what happens when another program changes the file.
"""

from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.lib.stride_tricks import as_strided

from kvcache.errors import quoted
from models.errors import GGUFError
from models.gguf.header import MAX_HEADER_BYTES, Header, HeaderEndError, TensorInfo, read_header
from models.gguf.metadata import Metadata
from models.gguf.open_file import OpenFile
from models.gguf.tensor import Bytes, Tensor

# How much of a file is read in search of its header's end: that of 128,000 tokens takes 11 MB.
_HEADER_PARTS = 16 << 20, MAX_HEADER_BYTES
_PIECE = 1 << 20  # bytes that are read at once of rows with others' bytes between them


class GGUFFile:
    """An open GGUF file. Use as a context manager.

    Every `GGUFError` that leaves the `with` block gets the file's path in front,
    so nothing that reads from the file has to know it. `metadata` and `tensors`
    outlive the file; the bytes of a `Tensor` keep the mapping alive for as long as they
    are held, and only reading (`Tensor.read`) needs the file open. `opened` stays open for
    as long as it is held.
    """

    version: int
    metadata: Metadata
    tensors: dict[str, TensorInfo]
    notes: tuple[str, ...]
    opened: OpenFile

    def __init__(self, path: Path | str) -> None:
        """Open the file and check its header. Raises `GGUFError`."""
        if not isinstance(path, str | Path) or not str(path):
            raise GGUFError(f"got path={quoted(path)}, expected the path of a GGUF file")
        self.path = Path(path)
        self.opened = OpenFile(self.path)
        self._is_closed = False
        try:
            header = _read_header(self.opened)
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
        """Give out nothing any more."""
        self._is_closed = True

    def tensor(self, tensor: str | TensorInfo) -> Tensor:
        """A tensor, or a part of one, without a copy.

        A vector's bytes are one row; of three or more axes the leading ones are
        flattened. Raises `GGUFError` if there is no such tensor, or no longer.
        """
        info = self._entry(tensor)
        self._require_open()
        self.opened.check()
        return Tensor(
            name=info.name,
            type=info.type,
            shape=info.shape,
            data=_rows(self.opened.data[info.offset :], info, info.rows),
            by_reading=partial(self._read, info),
        )

    def _read(self, info: TensorInfo, out: Bytes, start: int) -> None:
        """Rows of a tensor from `start` on, as many as `out` has."""
        self._require_open()
        step = info.step or info.row_bytes
        if info.step is None:
            self.opened.read(out.data, info.offset + start * step)
            return
        some = max(1, _PIECE // step)
        for at in range(0, len(out), some):
            rows = out[at : at + some]
            buffer = np.empty((len(rows) - 1) * step + info.row_bytes, np.uint8)
            self.opened.read(buffer.data, info.offset + (start + at) * step)
            rows[...] = _rows(buffer, info, len(rows))

    def _entry(self, tensor: str | TensorInfo) -> TensorInfo:
        if isinstance(tensor, TensorInfo):
            return tensor
        if not isinstance(tensor, str):
            raise GGUFError(f"got tensor={quoted(tensor)}, expected a tensor's name")
        if tensor not in self.tensors:
            raise GGUFError(f"there is no tensor {tensor!r}, which the model needs")
        return self.tensors[tensor]

    def _require_open(self) -> None:
        if self._is_closed:
            raise self._named(GGUFError("is closed"))

    def _named(self, error: GGUFError) -> GGUFError:
        return error if str(error).startswith(f"{self.path}: ") else self.opened.error(str(error))


def _rows(data: Bytes, info: TensorInfo, count: int) -> Bytes:
    """The first rows of a tensor whose bytes begin there, [count, row bytes], without a copy."""
    step = info.step or info.row_bytes
    return as_strided(data, (count, info.row_bytes), (step, 1), writeable=False)


def _read_header(opened: OpenFile) -> Header:
    """The header, of no more of the file than it takes."""
    for most in _HEADER_PARTS:
        buffer = memoryview(bytearray(min(most, opened.size)))
        opened.read(buffer, 0)
        try:
            return read_header(buffer, opened.size)
        except HeaderEndError as error:
            found = error
        if len(buffer) < most:
            break
    raise found
