"""That compiled products ask for memory ahead: no number shows it, and GCC has left it out once."""

import platform
from pathlib import Path

import pytest

from kvcache.native import build
from models.native.kernels import SOURCES
from tests.kvcache.native.conftest import NATIVE, compile_kernels

# A processor with 8-bit vector products, for which all types have products that ask; and on
# others those over floats.
PROCESSOR, PARTS = (
    ("-march=icelake-server", [part for part in SOURCES.parts if part.stem.startswith("types_")])
    if platform.machine() == "x86_64"
    else (NATIVE, [part for part in SOURCES.parts if part.stem == "types_simple"])
)
INSTRUCTIONS = ("\tprefetch", "\tprfm")


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.stem)
def test_products_of_every_family_prefetch(tmp_path: Path, part: Path) -> None:
    alone = build.Sources(entry=part, headers=SOURCES.headers)
    assembly = tmp_path / "part.s"
    compile_kernels(alone, assembly, PROCESSOR, "-S")
    assert any(line.startswith(INSTRUCTIONS) for line in assembly.read_text().splitlines())
