"""Getters of GGUF metadata: presence, type, size, finiteness."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from models.errors import GGUFError
from models.gguf.metadata import Metadata, MetadataValue


@pytest.fixture
def metadata() -> Metadata:
    values: dict[str, MetadataValue] = {
        "int": 7,
        "float": 0.5,
        "bool": True,
        "string": "llama",
        "strings": ["a", "b"],
        "ints": np.array([3, 5], np.uint16),
        "floats": np.array([0.5, 2], np.float64),
        "bools": np.array([True]),
        "nan": math.nan,
        "infinite": -math.inf,
        "nans": np.array([1, math.nan], np.float32),
    }
    return Metadata(values)


def test_getters_return_values_of_their_type(metadata: Metadata) -> None:
    assert metadata.get_int("int") == 7
    assert metadata.get_float("float") == 0.5
    assert metadata.get_float("int") == 7.0
    assert metadata.get_bool("bool") is True
    assert metadata.get_string("string") == "llama"
    assert metadata.get_strings("strings") == ["a", "b"]
    assert metadata.get_ints("ints").tolist() == [3, 5]
    assert metadata.get_floats("floats").tolist() == [0.5, 2.0]
    assert metadata.get_floats("ints").dtype == np.float64
    assert np.isnan(metadata.get_floats("nans")[1])


def test_defaults_stand_in_for_missing_keys_only(metadata: Metadata) -> None:
    assert metadata.get_int("absent", 0) == 0
    assert metadata.get_bool("absent", False) is False
    assert metadata.get_string("absent", "") == ""
    assert metadata.get_int("int", 3) == 7
    with pytest.raises(GGUFError, match=r"^string is 'llama', expected an integer"):
        metadata.get_int("string", 3)


GETTERS: list[tuple[Callable[[Metadata, str], object], set[str]]] = [
    (Metadata.get_int, {"int"}),
    (Metadata.get_float, {"int", "float"}),
    (Metadata.get_bool, {"bool"}),
    (Metadata.get_string, {"string"}),
    (Metadata.get_strings, {"strings"}),
    (Metadata.get_ints, {"ints"}),
    (Metadata.get_floats, {"ints", "floats", "nans"}),
]


@pytest.mark.parametrize(("getter", "accepted"), GETTERS)
def test_wrong_types_missing_keys_and_nan_are_refused(
    metadata: Metadata, getter: Callable[[Metadata, str], object], accepted: set[str]
) -> None:
    for key in metadata.keys() - accepted:
        with pytest.raises(GGUFError, match=f"^{key} (is|holds) "):
            getter(metadata, key)
    with pytest.raises(GGUFError, match=r"^absent is missing"):
        getter(metadata, "absent")


def test_long_values_are_cut_in_errors(metadata: Metadata) -> None:
    metadata["template"] = "x" * 9999
    with pytest.raises(GGUFError) as caught:
        metadata.get_int("template")
    assert len(str(caught.value)) < 200
