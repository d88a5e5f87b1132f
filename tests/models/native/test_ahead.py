"""That compiled products ask for memory ahead: no number shows it, and GCC has left it out once."""

import platform
from pathlib import Path

import pytest

from models.gguf.tensor_types import TensorType
from models.native.kernels import products
from tests.kvcache.native.conftest import NATIVE, compile_kernels, compiled_as

# A processor with 8-bit vector products, for which all families have products that ask; and on
# others those over floats.
PROCESSOR, KINDS = (
    ("-march=icelake-server", [TensorType.F16, TensorType.Q4_1, TensorType.Q4_K, TensorType.IQ3_S])
    if platform.machine() == "x86_64"
    else (NATIVE, [TensorType.F16])
)
INSTRUCTIONS = ("\tprefetch", "\tprfm")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_products_of_every_family_prefetch(tmp_path: Path, kind: TensorType) -> None:
    assembly = tmp_path / "type.s"
    compile_kernels(compiled_as(products(kind), PROCESSOR), assembly, "-S")
    assert any(line.startswith(INSTRUCTIONS) for line in assembly.read_text().splitlines())
