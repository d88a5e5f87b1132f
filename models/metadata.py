"""GGUF metadata: a dict with getters that check presence, type and size.

Knows nothing of the file's layout, its name, or what any key means.
"""

import math
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from models.errors import GGUFError

MetadataValue = int | float | bool | str | list[str] | npt.NDArray[np.generic]
_Value = TypeVar("_Value")


class Metadata(dict[str, MetadataValue]):
    """Key-value section of one GGUF file, or any mapping of such values.

    Each getter returns the value under `key`; a missing key gives `default`
    where one is passed, and otherwise, like a wrong type, raises `GGUFError`.
    """

    def get_int(self, key: str, default: int | None = None) -> int:
        """An integer of any width; a bool is not one."""
        value = self._lookup(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong_type(key, value, "an integer")
        return value

    def get_index(self, key: str, size: int) -> int | None:
        """An integer from 0 to size - 1; None where there is no such key."""
        if key not in self:
            return None
        index = self.get_int(key)
        if not 0 <= index < size:
            raise GGUFError(f"{key} is {index}, expected 0..{size - 1}")
        return index

    def get_float(self, key: str, default: float | None = None) -> float:
        """A finite number; integers are accepted, NaN and infinity are not."""
        value = self._lookup(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong_type(key, value, "a number")
        if not math.isfinite(value):
            raise GGUFError(f"{key} is {value}, expected a finite number")
        return float(value)

    def get_bool(self, key: str, default: bool | None = None) -> bool:
        """A boolean."""
        value = self._lookup(key, default)
        if not isinstance(value, bool):
            raise _wrong_type(key, value, "a boolean")
        return value

    def get_string(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._lookup(key, default)
        if not isinstance(value, str):
            raise _wrong_type(key, value, "a string")
        return value

    def get_strings(self, key: str) -> list[str]:
        """An array of strings, the stored list itself."""
        value = self._lookup(key, None)
        if not isinstance(value, list):
            raise _wrong_type(key, value, "an array of strings")
        try:
            # Always so in a file that was read; not in a mapping from elsewhere.
            "".join(value).encode()
        except (TypeError, UnicodeEncodeError):
            raise GGUFError(f"{key} holds what is not UTF-8 text") from None
        return value

    def get_ints(self, key: str, *, size: int) -> npt.NDArray[np.integer]:
        """An array of `size` integers, of the width that the file gives them."""
        return self._array(key, size, "iu", "an array of integers")

    def get_floats(self, key: str, *, size: int) -> npt.NDArray[np.float64]:
        """An array of `size` finite numbers; integers are accepted."""
        numbers = self._array(key, size, "fiu", "an array of numbers").astype(np.float64)
        if not np.isfinite(numbers).all():
            raise GGUFError(f"{key} holds NaN or infinity, expected finite numbers")
        return numbers

    def _array(self, key: str, size: int, kinds: str, expected: str) -> npt.NDArray[Any]:
        value = self._lookup(key, None)
        if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in kinds:
            raise _wrong_type(key, value, expected)
        if value.size != size:
            raise GGUFError(f"{key} has {value.size} entries, expected {size}")
        return value

    def _lookup(self, key: str, default: _Value | None) -> MetadataValue | _Value:
        value = self.get(key, default)
        if value is None:
            raise GGUFError(f"{key} is missing; convert the model again")
        return value


def _wrong_type(key: str, value: object, expected: str) -> GGUFError:
    return GGUFError(f"{key} is {_describe(value)}, expected {expected}")


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    if isinstance(value, list):
        return "an array of strings"
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "..."
