"""The kernels, in every form that this machine can run."""

import ctypes
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvcache.native import build
from kvcache.native.build import Sources
from kvcache.native.library import SOURCES, Library

NATIVE = build._THIS_PROCESSOR
# Without AVX-512 the loops are the portable ones.
PORTABLE = {"x86_64": "-march=x86-64-v3", "aarch64": "-march=armv8-a"}.get(
    platform.machine(), NATIVE
)
# Fixtures are made again with every file of tests, and each takes a quarter of a minute.
_PORTABLE_BUILDS: dict[Sources, Path] = {}
# A library to test in place of the usual two (see test_sanitizers).
GIVEN = os.environ.get("EMBER_TEST_KERNELS")


def compile_kernels(
    sources: Sources, target: Path, architecture: str, *extra: str, compiler: str | None = None
) -> None:
    """Build kernels for another processor, or with other flags. compiler: other than ours."""
    command = sources.command(compiler or build.find_compiler(), target)
    flags = [architecture if flag == NATIVE else flag for flag in command]
    subprocess.run([*flags, *extra], check=True)


def compiled_for(architecture: str, sources: Sources, folder: Path) -> Path:
    """A library for this processor, or one for a plain processor of its kind."""
    if architecture == "native":
        build.load(sources)
        path = build.built(sources)
        assert path is not None
        return path
    if sources not in _PORTABLE_BUILDS:
        target = folder / "portable.so"
        compile_kernels(sources, target, PORTABLE)
        _PORTABLE_BUILDS[sources] = target
    return _PORTABLE_BUILDS[sources]


@pytest.fixture(scope="session", params=["given"] if GIVEN else ["native", "portable"])
def architecture(request: pytest.FixtureRequest) -> str:
    """What the kernels are compiled for."""
    return str(request.param)


@pytest.fixture(scope="session")
def compiled(architecture: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library under test."""
    folder = tmp_path_factory.mktemp("kernels")
    return Path(GIVEN) if GIVEN else compiled_for(architecture, SOURCES, folder)


@pytest.fixture(scope="session", params=[1, 2], ids=["1-thread", "2-threads"])
def kernels(request: pytest.FixtureRequest, compiled: Path) -> Iterator[Library]:
    """The kernels with one and with two threads."""
    library = Library(ctypes.CDLL(str(compiled)), request.param)
    yield library
    library.close()
