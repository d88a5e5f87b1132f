"""That attention over codes of 4 bits is compiled to loops of vectors, and to how short ones.

No number that the kernels give shows a loop that the compiler took to pieces or whose
sums it keeps in memory, and the processors are others than this one.
"""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvcache.native import build
from kvcache.native.library import SOURCES
from tests.kvcache.native.conftest import compile_kernels

ARM_COMPILER = "aarch64-linux-gnu-g++"
# What three query rows of a KV head meet, as in SmolLM2: scores, and sums of values.
PROGRAM = """
#include "coded_values.h"
using namespace ember;
template void CodedKeys::multiply_tokens<4, 3, 1>(const CodedQueries<3>&, int64_t, int64_t,
                                                  float*) const;
template void CodedValues::add_codes<4, 3, 1>(const CodedValues::Weights<3>&, int64_t,
                                              const float*, float*) const;
"""


@dataclass(frozen=True, kw_only=True)
class Loop:
    """The loop of a function. codes: bytes of them to a turn. most: instructions to a byte."""

    function: str
    product: str
    codes: int
    most: float


@dataclass(frozen=True, kw_only=True)
class Processor:
    """What is compiled for. one_by_one: what takes numbers out of registers or puts them in."""

    compiler: str
    architecture: str
    one_by_one: str
    loops: tuple[Loop, Loop]


PROCESSORS = {
    "avx2": Processor(
        compiler="g++",
        architecture="-march=x86-64-v3",
        one_by_one=r"vp?(insr|extr)[bwdq]|v?insertps|vmovss",
        loops=(
            Loop(function="multiply_tokens", product="vpmaddubsw", codes=64, most=1.8),
            Loop(function="add_codes", product="vpmaddwd", codes=32, most=2.0),
        ),
    ),
    "dot products": Processor(
        compiler=ARM_COMPILER,
        architecture="-mcpu=neoverse-n1",
        one_by_one=r"[us]mov|ins|ld1",
        loops=(
            Loop(function="multiply_tokens", product="sdot", codes=32, most=1.7),
            Loop(function="add_codes", product="sdot", codes=16, most=2.5),
        ),
    ),
}
HERE = {name: one for name, one in PROCESSORS.items() if shutil.which(one.compiler)}


@pytest.mark.parametrize("processor", HERE.values(), ids=HERE.keys())
def test_codes_are_met_in_short_loops_of_vectors(tmp_path: Path, processor: Processor) -> None:
    program, assembly = tmp_path / "program.cpp", tmp_path / "program.s"
    program.write_text(PROGRAM)
    sources = build.Sources(
        entry=program, headers=(SOURCES.entry.parent,), processor=processor.architecture
    )
    compile_kernels(sources, assembly, "-S", compiler=processor.compiler)
    for loop in processor.loops:
        turn = _innermost(assembly.read_text(), loop)
        assert len(turn) <= loop.most * loop.codes, turn
        assert not [each for each in turn if re.fullmatch(processor.one_by_one, each)]


def _innermost(assembly: str, loop: Loop) -> list[str]:
    """The names of the instructions of the shortest loop of a function that multiplies."""
    (body,) = re.findall(
        rf"^_Z\w+{loop.function}\w+:\n(.*?)^\s\.size", assembly, re.MULTILINE | re.DOTALL
    )
    turns = [turn for turn in _loops(body.splitlines()) if loop.product in turn]
    return min(turns, key=len)


def _loops(lines: list[str]) -> Iterator[list[str]]:
    """The instructions between each label and a jump back to it."""
    labels = {line[:-1]: at for at, line in enumerate(lines) if re.fullmatch(r"\.L\w+:", line)}
    for at, line in enumerate(lines):
        words = line.split()
        if words and words[-1] in labels and labels[words[-1]] < at:
            inside = lines[labels[words[-1]] : at + 1]
            yield [each.split()[0] for each in inside if re.match(r"\t[a-z]", each)]
