"""The kernels, in every form that this machine can run."""

import os
import platform
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvcache.native import build
from kvcache.native.build import Sources
from kvcache.native.compilers import find_compiler
from kvcache.native.library import ALL_CODES, SOURCES, Library, codes

NATIVE = build._THIS_PROCESSOR
# Without AVX-512 the loops are the portable ones.
PORTABLE = {"x86_64": "-march=x86-64-v3", "aarch64": "-march=armv8-a"}.get(
    platform.machine(), NATIVE
)
# What is computed with all codes that there are.
CODES = [
    ALL_CODES,
    *(codes(bits) for bits in (2, 3, 4, 5, 6, 8)),
    *(codes(bits, trellis=True) for bits in (2, 3, 4)),
]
# What the compiler is told in place of the usual two (see test_sanitizers).
GIVEN = os.environ.get("EMBER_TEST_FLAGS", "").split()
if GIVEN:
    # No compiler runs with what is loaded before this program.
    os.environ.pop("LD_PRELOAD", None)


def compiled_as(sources: Sources, processor: str, *flags: str) -> Sources:
    """Kernels for another processor, or with other flags."""
    return replace(sources, processor=processor, flags=(*sources.flags, *flags))


def compile_kernels(
    sources: Sources, target: Path, *flags: str, compiler: str | None = None
) -> None:
    """Compile into a file. compiler: other than ours."""
    command = sources.command(compiler or find_compiler(), target)
    subprocess.run([*command, *flags], check=True)


@pytest.fixture(scope="session", params=["given"] if GIVEN else ["native", "portable"])
def compiled(request: pytest.FixtureRequest) -> Sources:
    """The library under test; what is computed with codes is compiled for the same."""
    told = GIVEN or [{"native": NATIVE, "portable": PORTABLE}[request.param]]
    sources = compiled_as(SOURCES, *told)
    build.build([sources, *(each.beside(sources) for each in CODES)], lambda: False)
    return sources


@pytest.fixture(scope="session", params=[1, 2], ids=["1-thread", "2-threads"])
def kernels(request: pytest.FixtureRequest, compiled: Sources) -> Iterator[Library]:
    """The kernels with one and with two threads."""
    library = Library(request.param, compiled)
    yield library
    library.close()
