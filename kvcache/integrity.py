"""What a saved cache must be before any of it is used: fields, arrays, and a sum over all of it.

The sum tells a damaged file from a whole one; it does not keep out a forger, so
every number and shape is checked beside it. Does not know what a cache is.
"""

import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import mlx.core as mx

from kvcache.errors import CacheError, quoted, short

# Positions are 32-bit numbers in the GPU's kernels.
MOST = 2**31 - 1

Kind = TypeVar("Kind")

_UNSIGNED = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32}
_ODD = 0x9E3779B1

Arrays = Sequence[mx.array | None]


def checksum(text: str, arrays: Arrays) -> mx.array:
    """A uint32 of shape [] that any other text, shape, dtype or bit changes; lazy.

    Each element counts by an odd weight of its place, modulo 2^32, so that no
    single change cancels.
    """
    shapes = [None if array is None else (array.shape, str(array.dtype)) for array in arrays]
    total = mx.array(zlib.crc32(f"{text} {shapes}".encode()), mx.uint32)
    for array in arrays:
        if array is not None and array.size:
            words = array.flatten().view(_UNSIGNED[array.dtype.size]).astype(mx.uint32)
            weights = mx.arange(array.size, dtype=mx.uint32) * (_ODD - 1) + 1
            total = total * _ODD + mx.sum(words * weights)
    return total


def is_sum(found: Any, text: str, arrays: Arrays) -> bool:
    """Whether `found` is the checksum of the rest."""
    known = all(array is None or array.dtype.size in _UNSIGNED for array in arrays)
    alike = isinstance(found, mx.array) and (found.shape, found.dtype) == ((), mx.uint32)
    return known and alike and found.item() == checksum(text, arrays).item()


def check_sum(found: Any, text: str, arrays: Arrays) -> None:
    """Raise CacheError unless `found` is the checksum of the rest of a saved cache."""
    if not is_sum(found, text, arrays):
        raise CacheError(
            "this saved cache is damaged: its sum is not that of its contents; "
            "delete the file and save the cache again"
        )


def field(fields: Mapping[str, Any], name: str, kind: type[Kind]) -> Kind:
    """A field of exactly this type. Raises CacheError."""
    value = fields.get(name)
    # A bool is an int elsewhere.
    if type(value) is not kind:
        raise bad_field(name, value, kind.__name__)
    return value


def count(fields: Mapping[str, Any], name: str, *, least: int = 0) -> int:
    """A field that is a whole number from `least` to MOST. Raises CacheError."""
    value = field(fields, name, int)
    if not least <= value <= MOST:
        raise bad_field(name, value, f"{least} to {MOST}")
    return value


def bad_field(name: str, value: object, expected: str) -> CacheError:
    """The error for a field of a saved cache."""
    return CacheError(f"this is not a saved cache: got {name}={quoted(value)}, expected {expected}")


def check_array(name: str, array: Any, shape: tuple[int, ...] | None, dtype: mx.Dtype) -> None:
    """Raise CacheError unless `array` is of this shape and dtype; None is for no array."""
    wanted = "none" if shape is None else f"{dtype} {shape}"
    found = array
    if isinstance(array, mx.array):
        found = f"{array.dtype} {array.shape}"
    elif array is None:
        found = "none"
    if found != wanted:
        raise CacheError(
            f"this is not a saved cache: got {name} {short(str(found))}, expected {wanted}"
        )


def check_memory(nbytes: int) -> None:
    """Raise CacheError for a cache that this machine's memory does not hold."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if nbytes > memory:
        raise CacheError(
            f"this saved cache is made for {nbytes} bytes a layer, but this machine has {memory}"
        )
