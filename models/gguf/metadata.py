"""GGUF metadata: a dict with getters that check presence, type and size.

Knows nothing of the file's layout, its name, or what any key means.
"""

import math
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from kvcache.errors import quoted
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
        """An array of strings, the stored list itself.

        Bytes that are not UTF-8 are in it as Python's surrogate escapes.
        """
        value = self._lookup(key, None)
        if not isinstance(value, list):
            raise _wrong_type(key, value, "an array of strings")
        try:
            # Always so in a file that was read; not in a mapping from elsewhere.
            "".join(value).encode(errors="surrogateescape")
        except (TypeError, UnicodeEncodeError):
            raise GGUFError(f"{key} holds what is not UTF-8 text") from None
        return value

    def get_ints(self, key: str) -> npt.NDArray[np.integer]:
        """An array of integers, of the width that the file gives them."""
        return self._array(key, "iu", "an array of integers")

    def get_floats(self, key: str) -> npt.NDArray[np.float64]:
        """An array of numbers, NaN and infinity among them; integers are accepted."""
        return self._array(key, "fiu", "an array of numbers").astype(np.float64)

    def _array(self, key: str, kinds: str, expected: str) -> npt.NDArray[Any]:
        value = self._lookup(key, None)
        if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in kinds:
            raise _wrong_type(key, value, expected)
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
    return quoted(value, 40)
