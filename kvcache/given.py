"""What callers may write for an argument, and how all else is refused: by its name.

Whole numbers come as Python's or numpy's, arrays as MLX's, numpy's or nested lists, members of
enumerations as the words that stand for them. True is no number here, and no text is one.
Knows no cache and no model.
"""

from collections.abc import Mapping
from enum import Enum
from math import isfinite
from operator import index
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

from kvcache.errors import CacheError, quoted

Member = TypeVar("Member", bound=Enum)
Kind = TypeVar("Kind")


def refused(name: str, value: object, expected: str) -> CacheError:
    """The error for an argument that is something else."""
    if isinstance(value, mx.array | np.ndarray):
        return CacheError(f"got {name}: {value.shape} of {value.dtype}, expected {expected}")
    return CacheError(f"got {name}={' '.join(quoted(value).split())}, expected {expected}")


def integer(name: str, value: object, *, least: int | None = 0, most: int | None = None) -> int:
    """A whole number from `least` to `most`. Raises CacheError."""
    whole_number = _index(value)
    if whole_number is None:
        raise refused(name, value, "a whole number")
    if least is not None and whole_number < least:
        raise CacheError(f"got {name}={quoted(whole_number)}, expected at least {least}")
    if most is not None and whole_number > most:
        many = f"{name}={whole_number}" if whole_number < 2**64 else f"an endless {name}"
        raise CacheError(f"got {many}, expected at most {most}")
    return whole_number


def number(name: str, value: object, *, above: float | None = None) -> float:
    """A finite number, greater than `above`. Raises CacheError."""
    if type(value) is float and isfinite(value) and above is None:
        return value  # for each token and layer
    expected = "a finite number" if above is None else f"more than {above:g}, and finite"
    if isinstance(value, bool | str | bytes):
        raise refused(name, value, expected)
    given: Any = value
    try:
        found = float(given)
    except (TypeError, ValueError, OverflowError):
        raise refused(name, value, expected) from None
    if not isfinite(found) or (above is not None and found <= above):
        raise refused(name, value, expected)
    return found


def flag(name: str, value: object) -> bool:
    """True or False. Raises CacheError."""
    if not isinstance(value, bool):
        raise refused(name, value, "True or False")
    return value


def array(name: str, value: object) -> mx.array:
    """An array of numbers. Raises CacheError."""
    if isinstance(value, mx.array):
        return value
    given: Any = value
    if isinstance(value, str | bytes | Mapping) or value is None:
        raise refused(name, value, "an array")
    try:
        return mx.array(given)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise refused(name, value, "an array, or lists of numbers of equal length") from None


def member(name: str, value: object, kind: type[Member]) -> Member:
    """One of an enumeration, which its value in words stands for too. Raises CacheError."""
    if isinstance(value, kind):
        return value
    words = {each.value: each for each in kind}
    if not isinstance(value, str) or value.lower() not in words:
        raise refused(name, value, f"one of {', '.join(words)}")
    return words[value.lower()]


def instance(name: str, value: object, kind: type[Kind]) -> Kind:
    """What is of a class. Raises CacheError."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise refused(name, value, f"{article} {kind.__name__}")
    return value


def optional(name: str, value: object, kind: type[Kind]) -> Kind | None:
    """What is of a class, or None. Raises CacheError."""
    return None if value is None else instance(name, value, kind)


def integers(name: str, values: object, *, least: int | None = 0) -> list[int]:
    """Whole numbers in a list, a tuple or an array. Raises CacheError."""
    if isinstance(values, mx.array):
        values = values.tolist()
    given: Any = values
    try:
        found = None if isinstance(values, str | bytes) else [*map(_index, given)]
    except TypeError:
        found = None
    if found is None or None in found:
        raise refused(name, values, "a list of whole numbers")
    numbers = [each for each in found if each is not None]
    if least is not None and min(numbers, default=least) < least:
        raise refused(name, values, f"none below {least}")
    return numbers


def _index(value: object) -> int | None:
    """A whole number of any kind; None for what is none."""
    given: Any = value
    if isinstance(value, bool | mx.array):
        return None
    try:
        return index(given)
    except TypeError:
        return None
