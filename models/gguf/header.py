"""The header of a GGUF file: metadata and the list of tensors.

Reads bytes it was given and trusts none of them: every count and length is
checked against the bytes that are left before anything is allocated. Knows
nothing of files, mappings or what the tensors hold. Layout (little-endian,
format versions 2 and 3; ggml's docs/gguf.md):

    "GGUF" | u32 version | u64 tensors | u64 pairs
    pairs   x { string key | u32 type | value }
    tensors x { string name | u32 dims | u64 dim[dims] | u32 type | u64 offset }
    padding to general.alignment, then the data the offsets count from

    string = u64 bytes | UTF-8        array = u32 type | u64 items | values

Files from careless converters hold text that is not UTF-8. Bytes that are not become
U+FFFD in descriptions, and \\xNN in keys. Strings of arrays keep them, as Python's
surrogate escapes, because a vocabulary's pieces must stay what they are.
"""

import struct
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from typing import Self

import numpy as np

from models.assumptions import Assumptions
from models.errors import GGUFError
from models.gguf.metadata import Metadata, MetadataValue
from models.gguf.tensor_types import TensorType, describe_unsupported

# A 260k-token vocabulary with its merges is about 20 MB of header. The bound
# keeps a hostile file from turning into gigabytes of Python objects.
MAX_HEADER_BYTES = 64 << 20
MAX_PAIRS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_NAME_BYTES = 1 << 16
MAX_DIMS = 4

_MIN_PAIR_BYTES = 8 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8
_BOOL, _STRING, _ARRAY = 7, 8, 9
_SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4"} | {
    6: "<f4",
    _BOOL: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """Where one tensor lies, or a part of one. `shape` is in numpy order (rows first), `offset`
    counts from the start of the file, `nbytes` is its size there. `step`: bytes from a row to
    the next, where others' lie between them."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    offset: int
    nbytes: int
    step: int | None = None

    @property
    def rows(self) -> int:
        """All leading axes together; 1 for a vector."""
        return prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """Of one row, without what lies between them."""
        return self.nbytes // self.rows

    def leading(self, part: range) -> Self:
        """Of a whole tensor: its rows, or a vector's numbers, of this range."""
        each = self.nbytes // self.shape[0]
        return replace(
            self,
            shape=(len(part), *self.shape[1:]),
            offset=self.offset + part.start * each,
            nbytes=len(part) * each,
        )

    def columns(self, part: range) -> Self:
        """Of a whole tensor: of each row the weights of this range, which are whole blocks."""
        kind, whole = self.type, self.row_bytes
        start, each = (at // kind.block_size * kind.block_bytes for at in (part.start, len(part)))
        return replace(
            self,
            shape=(*self.shape[:-1], len(part)),
            offset=self.offset + start,
            nbytes=self.rows * each,
            step=whole,
        )


@dataclass(frozen=True, kw_only=True)
class Header:
    """What precedes the data of one GGUF file. `notes`: see `Assumptions`."""

    version: int
    metadata: Metadata
    tensors: dict[str, TensorInfo]
    notes: tuple[str, ...]


class HeaderEndError(GGUFError):
    """The header goes on behind the bytes that were given, or claims to."""


def read_header(buffer: memoryview, size: int) -> Header:
    """Parse the header at the start of `buffer`, the first bytes of a file of `size` bytes.

    Raises `HeaderEndError` where these do not hold it, and `GGUFError` for anything that is
    damaged, absurd or not supported.
    """
    cursor = _Cursor(buffer, size)
    version = _read_version(cursor)
    tensor_count = cursor.count("tensors", MAX_TENSORS)
    pair_count = cursor.count("metadata pairs", MAX_PAIRS)
    cursor.require(pair_count * _MIN_PAIR_BYTES + tensor_count * _MIN_TENSOR_BYTES, "the header")
    metadata = Metadata()
    _read_pairs(cursor, pair_count, metadata)
    entries = [_read_tensor(cursor) for _ in range(tensor_count)]
    tensors = _place(entries, cursor, _alignment(metadata), size)
    notes = cursor.assumptions.notes()
    return Header(version=version, metadata=metadata, tensors=tensors, notes=notes)


def read_leading_metadata(buffer: memoryview, size: int) -> Metadata:
    """The first pairs of metadata, all that stand whole in `buffer`, of a file of `size` bytes.

    Dimensions usually stand before the vocabulary, which is most of a header. Raises
    `GGUFError` as `read_header` does, but not for what the bytes do not hold.
    """
    cursor, metadata = _Cursor(buffer, size), Metadata()
    with suppress(HeaderEndError):
        _read_version(cursor)
        cursor.count("tensors", MAX_TENSORS)
        _read_pairs(cursor, cursor.count("metadata pairs", MAX_PAIRS), metadata)
    return metadata


class _Cursor:
    """A read position in the header; refuses to pass its end."""

    def __init__(self, buffer: memoryview, size: int) -> None:
        self.end = len(buffer)
        self.capped = size > self.end
        self.buffer = buffer
        self.at = 0
        self.assumptions = Assumptions()

    def error(self, message: str, kind: type[GGUFError] = GGUFError) -> GGUFError:
        return kind(f"{message}; the file is damaged or not a GGUF model")

    def ends(self, what: str) -> GGUFError:
        mib = MAX_HEADER_BYTES >> 20
        limit = f"the {mib} MiB ember reads of a header" if self.capped else "the end"
        return self.error(f"{what} reaches past {limit}", HeaderEndError)

    def require(self, size: int, what: str) -> None:
        if size > self.end - self.at:
            raise self.ends(f"{what} at byte {self.at}")

    def take(self, size: int, what: str) -> memoryview:
        self.require(size, what)
        start = self.at
        self.at += size
        return self.buffer[start : self.at]

    def u32(self, what: str) -> int:
        return int(_U32.unpack(self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack(self.take(8, what))[0])

    def count(self, what: str, limit: int) -> int:
        value = self.u64(f"the number of {what}")
        if value > limit:
            raise self.error(f"{value} {what}, expected at most {limit}")
        return value

    def string(self, what: str, limit: int = MAX_HEADER_BYTES, *, errors: str | None = None) -> str:
        """A string; `errors` says how bytes are decoded that are not UTF-8, None refuses them."""
        size = self.u64(what)
        if size > limit:
            raise self.error(f"{what} at byte {self.at} claims {size} bytes")
        data = self.take(size, what)
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError as error:
            if errors is None:
                raise self.error(f"{what} before byte {self.at} is not UTF-8") from error
            self.assumptions.add(what, "not UTF-8, the bytes that are not are replaced")
            return str(data, "utf-8", errors)

    def strings(self, count: int, what: str) -> list[str]:
        """`count` strings; one loop without calls, for vocabularies are long."""
        self.require(8 * count, what)
        buffer, at, end, unpack = self.buffer, self.at, self.end, _U64.unpack_from
        items: list[str] = []
        try:
            for _ in range(count):
                start = at + 8
                at = start + unpack(buffer, at)[0]
                if at > end:
                    raise self.ends(f"{what}: string {len(items)}")
                items.append(str(buffer[start:at], "utf-8", "surrogateescape"))
        except struct.error as error:
            raise self.ends(f"{what}: string {len(items)}") from error
        self.at = at
        return items


def _read_version(cursor: _Cursor) -> int:
    if bytes(cursor.take(4, "the magic")) != b"GGUF":
        raise cursor.error("does not start with 'GGUF'")
    version = cursor.u32("the version")
    if version & 0xFFFF == 0:
        raise GGUFError("is a big-endian GGUF file; get the little-endian one")
    if version not in (2, 3):
        raise GGUFError(f"is GGUF version {version}, expected 2 or 3; convert it anew")
    return version


def _read_pairs(cursor: _Cursor, count: int, metadata: Metadata) -> None:
    for _ in range(count):
        key = cursor.string("a metadata key", MAX_NAME_BYTES, errors="backslashreplace")
        if key in metadata:
            raise cursor.error(f"metadata {key!r} appears twice")
        metadata[key] = _read_value(cursor, f"metadata {key!r}")


def _read_value(cursor: _Cursor, what: str) -> MetadataValue:
    kind = cursor.u32(what)
    if kind == _STRING:
        return cursor.string(what, errors="replace")
    if kind == _ARRAY:
        return _read_array(cursor, what)
    value: int | float | bool = _read_numbers(cursor, kind, 1, what)[0].item()
    return value


def _read_array(cursor: _Cursor, what: str) -> MetadataValue:
    kind = cursor.u32(what)
    count = cursor.u64(what)
    if kind == _ARRAY:
        raise cursor.error(f"{what} is an array of arrays, which ember does not read")
    if kind == _STRING:
        return cursor.strings(count, what)
    return _read_numbers(cursor, kind, count, what).copy()


def _read_numbers(cursor: _Cursor, kind: int, count: int, what: str) -> np.ndarray:
    if kind not in _SCALARS:
        raise cursor.error(f"{what} has the unknown value type {kind}")
    dtype = np.dtype(_SCALARS[kind])
    data = np.frombuffer(cursor.take(count * dtype.itemsize, what), np.uint8)
    if kind == _BOOL and data.size and data.max() > 1:
        cursor.assumptions.add(what, "not a boolean (0 or 1), other numbers count as true")
        return data.astype(np.bool_)
    return data.view(dtype)


def _read_tensor(cursor: _Cursor) -> TensorInfo:
    """One entry, its offset still relative to the start of the data."""
    name = cursor.string("a tensor name", MAX_NAME_BYTES)
    dims = cursor.u32(f"tensor {name!r}")
    if not 1 <= dims <= MAX_DIMS:
        raise cursor.error(f"tensor {name!r} has {dims} dimensions, expected 1 to {MAX_DIMS}")
    shape = tuple(cursor.u64(f"tensor {name!r}") for _ in range(dims))[::-1]
    number = cursor.u32(f"tensor {name!r}")
    offset = cursor.u64(f"tensor {name!r}")
    try:
        kind = TensorType(number)
    except ValueError:
        unsupported = describe_unsupported(number)
        raise GGUFError(f"tensor {name!r}: type {unsupported}") from None
    if 0 in shape or shape[-1] % kind.block_size:
        raise cursor.error(
            f"tensor {name!r} has shape {shape}, expected no empty axis "
            f"and rows of whole {kind.name} blocks of {kind.block_size}"
        )
    nbytes = prod(shape) // kind.block_size * kind.block_bytes
    return TensorInfo(name=name, shape=shape, type=kind, offset=offset, nbytes=nbytes)


def _alignment(metadata: Metadata) -> int:
    alignment = metadata.get_int("general.alignment", 32)
    if not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise GGUFError(
            f"general.alignment is {alignment}, expected a power of two from 8 to 1048576"
        )
    return alignment


def _place(
    entries: list[TensorInfo], cursor: _Cursor, alignment: int, size: int
) -> dict[str, TensorInfo]:
    """Make offsets absolute, and refuse tensors that clash or leave the file."""
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    end, last = 0, ""
    for entry in sorted(entries, key=lambda entry: entry.offset):
        name = entry.name
        if name in tensors:
            raise cursor.error(f"tensor {name!r} appears twice")
        if entry.offset % alignment:
            raise cursor.error(f"tensor {name!r} starts at {entry.offset}, not at {alignment} * n")
        if entry.offset < end:
            raise cursor.error(f"tensors {last!r} and {name!r} overlap")
        if start + entry.offset + entry.nbytes > size:
            needed = start + entry.offset + entry.nbytes
            raise cursor.error(f"tensor {name!r} ends at byte {needed}, the file at {size}")
        end, last = entry.offset + entry.nbytes, name
        tensors[name] = TensorInfo(
            name=name,
            shape=entry.shape,
            type=entry.type,
            offset=start + entry.offset,
            nbytes=entry.nbytes,
        )
    return {entry.name: tensors[entry.name] for entry in entries}
