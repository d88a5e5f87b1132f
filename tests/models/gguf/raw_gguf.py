"""GGUF bytes put together by hand, so that any field of them can be wrong."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Writer = Callable[[bytes], Path]

U8, I32, F32, BOOL, STRING, ARRAY = 0, 5, 6, 7, 8, 9


def string(text: str | bytes) -> bytes:
    """A length of 64 bits and the text."""
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    """A metadata pair whose value is encoded already."""
    return string(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes) -> bytes:
    """The value of an array; `count` need not be true."""
    return struct.pack("<IQ", kind, count) + values


def tensor(
    name: str | bytes,
    dims: tuple[int, ...] = (8,),
    kind: int = 0,
    offset: int = 0,
    *,
    dim_count: int | None = None,
) -> bytes:
    """A tensor entry; `dims` in the file's order, columns first."""
    count = len(dims) if dim_count is None else dim_count
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", count, *dims, kind, offset)


@dataclass(frozen=True, kw_only=True)
class RawGGUF:
    """A file of one metadata pair and one tensor of 8 floats, unless told otherwise."""

    magic: bytes = b"GGUF"
    version: int = 3
    pairs: tuple[bytes, ...] = (pair("general.architecture", STRING, string("llama")),)
    tensors: tuple[bytes, ...] = (tensor("norm"),)
    pair_count: int | None = None
    tensor_count: int | None = None
    data: bytes = bytes(range(32))
    alignment: int = 32

    def header(self) -> bytes:
        """Everything before the padding."""
        counts = (
            len(self.tensors) if self.tensor_count is None else self.tensor_count,
            len(self.pairs) if self.pair_count is None else self.pair_count,
        )
        start = self.magic + struct.pack("<IQQ", self.version, *counts)
        return start + b"".join(self.pairs) + b"".join(self.tensors)

    def encode(self) -> bytes:
        """The whole file."""
        header = self.header()
        return header + bytes(-len(header) % self.alignment) + self.data
