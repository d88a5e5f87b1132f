"""Running a type adds next to nothing to what the type itself has lost."""

import re
from pathlib import Path

import pytest

from models.gguf.tensor_types import TensorType
from models.native.kernels import Kernels
from tests.type_error import type_error

_PAGE = Path(__file__).parents[3] / "docs" / "tensor-types.md"
# By type, what the page says that products of the cpu add.
_TOLD = {
    name: float(error)
    for name, error in re.findall(r"^\| (\w+) \| [\d.]+ \| (\S+) ", _PAGE.read_text("utf-8"), re.M)
}


@pytest.mark.parametrize("tokens", [1, 5, 41])
@pytest.mark.parametrize("kind", TensorType, ids=lambda kind: kind.name)
def test_products_add_what_rounding_does(kernels: Kernels, kind: TensorType, tokens: int) -> None:
    """Of 15 bits of activations, and of float32; a hundredth of what the least lossy type lost."""
    found = type_error(kind, kernels, rows=67, columns=512, tokens=tokens)
    assert found.cpu < 1.5 * _TOLD[kind.name]
    assert found.reference < 1e-6
    assert kind.block_size == 1 or found.own > 4e-3
