"""GGUF metadata: a dict with getters that check presence and type.

Knows nothing of the file's layout or of what any key means.
"""

import math
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from models.errors import GGUFError

MetadataValue = int | float | bool | str | list[str] | npt.NDArray[np.generic]
_Value = TypeVar("_Value")


class Metadata(dict[str, MetadataValue]):
    """Key-value section of one GGUF file.

    Each getter returns the value under `key`; a missing key gives `default`
    where one is passed, and otherwise, like a wrong type, raises `GGUFError`.
    """

    def get_int(self, key: str, default: int | None = None) -> int:
        """An integer of any width; a bool is not one."""
        value = self._lookup(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong_type(key, value, "an integer")
        return value

    def get_float(self, key: str, default: float | None = None) -> float:
        """A finite number; integers are accepted, NaN and infinity are not."""
        value = self._lookup(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong_type(key, value, "a number")
        if not math.isfinite(value):
            raise GGUFError(f"metadata {key!r} is {value}, expected a finite number")
        return float(value)

    def get_bool(self, key: str, default: bool | None = None) -> bool:
        """A boolean."""
        value = self._lookup(key, default)
        if not isinstance(value, bool):
            raise self._wrong_type(key, value, "a boolean")
        return value

    def get_string(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._lookup(key, default)
        if not isinstance(value, str):
            raise self._wrong_type(key, value, "a string")
        return value

    def get_strings(self, key: str, default: list[str] | None = None) -> list[str]:
        """An array of strings, the stored list itself."""
        value = self._lookup(key, default)
        if not isinstance(value, list):
            raise self._wrong_type(key, value, "an array of strings")
        return value

    def get_ints(
        self, key: str, default: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.int64]:
        """An array of integers, widened to int64."""
        value = self._lookup(key, default)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
            raise self._wrong_type(key, value, "an array of integers")
        return value.astype(np.int64)

    def get_floats(
        self, key: str, default: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """An array of finite numbers, as float32."""
        value = self._lookup(key, default)
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
            raise self._wrong_type(key, value, "an array of numbers")
        numbers = value.astype(np.float32)
        if not np.isfinite(numbers).all():
            raise GGUFError(f"metadata {key!r} holds NaN or infinite numbers")
        return numbers

    def _lookup(self, key: str, default: _Value | None) -> MetadataValue | _Value:
        value = self.get(key, default)
        if value is None:
            raise GGUFError(f"metadata {key!r} is missing, and ember needs it")
        return value

    def _wrong_type(self, key: str, value: object, expected: str) -> GGUFError:
        return GGUFError(f"metadata {key!r} is {_describe(value)}, not {expected}")


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    if isinstance(value, list):
        return "an array of strings"
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "..."
