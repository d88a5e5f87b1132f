"""The kernels, in every form that this machine can run."""

import ctypes
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvcache.native import build
from kvcache.native.library import Library

NATIVE = build._THIS_PROCESSOR
# Without AVX-512 the loops are the portable ones.
PORTABLE = {"x86_64": "-march=x86-64-v3", "aarch64": "-march=armv8-a"}.get(
    platform.machine(), NATIVE
)
# A library to test in place of the usual two (see test_sanitizers).
GIVEN = os.environ.get("EMBER_TEST_KERNELS")


def compile_kernels(target: Path, architecture: str, *extra: str) -> None:
    """Build the kernels for another processor, or with other flags."""
    flags = [architecture if flag == NATIVE else flag for flag in build._FLAGS]
    entry = str(build._ENTRY)
    command = [build.find_compiler(), *flags, *extra, "-o", str(target), entry]
    subprocess.run(command, check=True)


@pytest.fixture(scope="session", params=["given"] if GIVEN else ["native", "portable"])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library for this processor, and one for a plain processor of its kind."""
    if GIVEN:
        return Path(GIVEN)
    if request.param == "native":
        build.load()
        path = build.built()
        assert path is not None
        return path
    target = tmp_path_factory.mktemp("kernels") / "portable.so"
    compile_kernels(target, PORTABLE)
    return target


@pytest.fixture(scope="session", params=[1, 2], ids=["1-thread", "2-threads"])
def kernels(request: pytest.FixtureRequest, compiled: Path) -> Iterator[Library]:
    """The kernels with one and with two threads."""
    library = Library(ctypes.CDLL(str(compiled)), request.param)
    yield library
    library.close()
