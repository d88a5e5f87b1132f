"""What tells a GGUF file from every other one, without reading all of it.

For what is kept between two runs and belongs to one file: under another name it is the same,
after another download of other weights it is not. Does not know what is kept.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from models.gguf.file import GGUFFile
from models.gguf.header import TensorInfo
from models.gguf.open_file import OpenFile

_EDGE = 4096  # bytes of a tensor's start, and of its end
_PART = 1 << 20


def identity(path: Path) -> str:
    """32 hex digits of a file, wherever it lies and whatever its name. Raises GGUFError.

    A hash of its size, its header and both ends of every tensor: milliseconds, and to parse
    the header, which `LoadedModel.identity` has at hand. It cannot tell files apart that
    differ in the midst of a tensor alone, as one does whose disk failed, or that somebody
    made so.
    """
    with GGUFFile(path) as file:
        return identity_of(file.opened, file.tensors.values())


def identity_of(opened: OpenFile, tensors: Iterable[TensorInfo]) -> str:
    """The same of an open file with these tensors, as it was when it was opened."""
    opened.check()
    found = hashlib.sha256(opened.size.to_bytes(8, "little"))
    for start, end in _parts(tensors, opened.size):
        buffer = memoryview(bytearray(end - start))
        opened.read(buffer, start)
        found.update(buffer)
    opened.check()
    return found.hexdigest()[:32]


def _parts(tensors: Iterable[TensorInfo], size: int) -> Iterator[tuple[int, int]]:
    """Where to read: the header, then the ends of tensors in the order of the file."""
    ordered = sorted(tensors, key=lambda info: info.offset)
    header = ordered[0].offset if ordered else size
    for start in range(0, header, _PART):
        yield start, min(start + _PART, header)
    for info in ordered:
        end = info.offset + info.nbytes
        yield info.offset, min(info.offset + _EDGE, end)
        yield max(info.offset, end - _EDGE), end
