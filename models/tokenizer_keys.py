"""Typed reads of a GGUF file's `tokenizer.ggml.*` keys, with errors that name the key.

Knows nothing of what a key means. The metadata may be damaged or hostile, so
every value is checked before it is used.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from models.errors import GGUFError

Metadata = Mapping[str, object]

PREFIX = "tokenizer.ggml."


def read_str(metadata: Metadata, name: str) -> str | None:
    """The string under PREFIX + `name`, or None where the file has no such key."""
    value = metadata.get(PREFIX + name)
    if value is None or isinstance(value, str):
        return value
    raise _wrong_type(name, value, "a string")


def read_bool(metadata: Metadata, name: str, *, default: bool) -> bool:
    """The boolean under PREFIX + `name`, or `default` where the file has no such key."""
    value = metadata.get(PREFIX + name, default)
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise _wrong_type(name, value, "a boolean")


def read_index(metadata: Metadata, name: str, size: int) -> int | None:
    """The integer under PREFIX + `name`, in 0..size-1, or None where the file has no such key."""
    value = metadata.get(PREFIX + name)
    if value is None:
        return None
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise _wrong_type(name, value, "an integer")
    if not 0 <= value < size:
        raise GGUFError(f"{PREFIX}{name} is {value}, expected 0..{size - 1}; the file is damaged")
    return int(value)


def read_strings(metadata: Metadata, name: str) -> list[str]:
    """The list of strings under PREFIX + `name`, which the file must have."""
    value = _required(metadata, name)
    if not isinstance(value, list | tuple):
        raise _wrong_type(name, value, "an array of strings")
    for item in value:
        if not isinstance(item, str):
            raise _wrong_type(name, item, "an array of strings")
    try:
        "".join(value).encode()
    except UnicodeEncodeError:
        raise GGUFError(f"{PREFIX}{name} holds text that is not UTF-8") from None
    return list(value)


def read_integers(metadata: Metadata, name: str, *, size: int) -> npt.NDArray[np.integer]:
    """The `size` integers under PREFIX + `name`, which the file must have."""
    array = _read_array(metadata, name, size)
    if array.dtype.kind not in "iu":
        raise _wrong_type(name, array, "an array of integers")
    return array


def read_floats(metadata: Metadata, name: str, *, size: int) -> npt.NDArray[np.float64]:
    """The `size` finite numbers under PREFIX + `name`, which the file must have."""
    array = _read_array(metadata, name, size)
    if array.dtype.kind not in "iuf":
        raise _wrong_type(name, array, "an array of numbers")
    floats = array.astype(np.float64)
    if not np.isfinite(floats).all():
        raise GGUFError(f"{PREFIX}{name} holds NaN or infinity, expected finite numbers")
    return floats


def _read_array(metadata: Metadata, name: str, size: int) -> npt.NDArray[Any]:
    value = _required(metadata, name)
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        raise _wrong_type(name, value, "an array of numbers") from None
    if array.ndim != 1:
        raise _wrong_type(name, value, "an array of numbers")
    if array.size != size:
        raise GGUFError(f"{PREFIX}{name} has {array.size} entries, expected {size}, one a token")
    return array


def _required(metadata: Metadata, name: str) -> object:
    value = metadata.get(PREFIX + name)
    if value is None:
        raise GGUFError(f"{PREFIX}{name} is missing from the file; convert the model again")
    return value


def _wrong_type(name: str, value: object, expected: str) -> GGUFError:
    got = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
    return GGUFError(f"{PREFIX}{name} is {got}, expected {expected}")
