"""One file of kept arrays: a safetensors file of which every byte of the header is known before.

Who reads one says what must be in it, and so the header that it must begin with; what differs
by a byte is not read. Its last tensor is a sum over all before it, which tells damage; a forger
it does not keep out. Knows arrays, no cache.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from kvcache.errors import EmberError

Array = npt.NDArray[np.generic]

_SUM = "sum"
LENGTH_BYTES = 8  # bytes that say how long the header is
MOST_HEADER = 1 << 20
# By safetensors' names; numpy has bfloat16 as its bits.
_DTYPES: Mapping[str, tuple[mx.Dtype, npt.DTypeLike]] = {
    "F32": (mx.float32, np.float32),
    "F16": (mx.float16, np.float16),
    "BF16": (mx.bfloat16, np.uint16),
    "U32": (mx.uint32, np.uint32),
    "U16": (mx.uint16, np.uint16),
    "U8": (mx.uint8, np.uint8),
    "I32": (mx.int32, np.int32),
}
_NAMES = {known: name for name, (known, _) in _DTYPES.items()}


class DamagedPieceError(EmberError):
    """A file that is not, byte for byte, what was written under its name."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """An array of a piece."""

    name: str
    shape: tuple[int, ...]
    dtype: mx.Dtype

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * self.dtype.size


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a piece holds. about: texts that belong to it, by name."""

    parts: tuple[Part, ...]
    about: tuple[tuple[str, str], ...]

    @cached_property
    def header(self) -> bytes:
        """The bytes before the first array."""
        described: dict[str, object] = {"__metadata__": dict(self.about)}
        at = 0
        for part in (*self.parts, _SUM_PART):
            described[part.name] = {
                "dtype": _NAMES[part.dtype],
                "shape": part.shape,
                "data_offsets": (at, at + part.nbytes),
            }
            at += part.nbytes
        text = json.dumps(described, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(LENGTH_BYTES, "little") + text

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return len(self.header) + sum(part.nbytes for part in self.parts) + _SUM_PART.nbytes

    def read(self, file: bytes | memoryview) -> list[Array]:
        """Views of the arrays in a file. Raises DamagedPieceError unless it is whole.

        bfloat16 comes as uint16, see `to_mlx`.
        """
        data, header = memoryview(file), self.header
        body = data[: -_SUM_PART.nbytes]
        if len(data) != self.nbytes or data[: len(header)] != header:
            raise DamagedPieceError("is not what its name says")
        if data[len(body) :] != ended(zlib.crc32(body)):
            raise DamagedPieceError("is damaged: its sum is not that of its contents")
        found, at = list[Array](), len(header)
        for part in self.parts:
            flat = np.frombuffer(data, np.uint8, part.nbytes, at)
            found.append(of_bytes(flat, part.dtype).reshape(part.shape))
            at += part.nbytes
        return found


_SUM_PART = Part(name=_SUM, shape=(1,), dtype=mx.uint32)


def of_bytes(data: Array, dtype: mx.Dtype) -> Array:
    """Bytes as numbers, a row in C order; bfloat16 as uint16."""
    return np.ascontiguousarray(data).reshape(-1).view(_DTYPES[_NAMES[dtype]][1])


def to_mlx(array: Array, dtype: mx.Dtype) -> mx.array:
    """A copy of what `of_bytes` gave, in its own dtype; there at once but for bfloat16."""
    made = mx.array(array)
    return made.view(mx.bfloat16) if dtype == mx.bfloat16 else made


def about_in(file: bytes) -> dict[str, str]:
    """The texts in the header of a file, by name, unchecked. Raises DamagedPieceError."""
    length = int.from_bytes(file[:LENGTH_BYTES], "little")
    if len(file) < LENGTH_BYTES or length > min(MOST_HEADER, len(file) - LENGTH_BYTES):
        raise DamagedPieceError("has no header")
    try:
        found = json.loads(file[LENGTH_BYTES : LENGTH_BYTES + length])["__metadata__"]
        return {str(name): str(text) for name, text in found.items()}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise DamagedPieceError("has no header") from error


def bytes_of(array: mx.array) -> bytes:
    """A copy of an array's memory, in C order; evaluates it."""
    bits = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    return np.ascontiguousarray(bits).tobytes()


def ended(total: int) -> bytes:
    """The end of a file, the CRC-32 of whose bytes before it is `total`."""
    return total.to_bytes(_SUM_PART.nbytes, "little")
