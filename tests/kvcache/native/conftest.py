"""The kernels, in every form that this machine can run."""

import ctypes
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvcache.native import build
from kvcache.native.library import Library

_NATIVE = "-march=native"
# Without AVX-512 the loops are the portable ones.
_PORTABLE = {"x86_64": "-march=x86-64-v3", "aarch64": "-march=armv8-a"}


@pytest.fixture(scope="session", params=["native", "portable"])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library for this processor, and one for a plain processor of its kind."""
    if request.param == "native":
        build.load()
        return build.library_path(build.find_compiler())
    target = tmp_path_factory.mktemp("kernels") / "portable.so"
    plain = _PORTABLE.get(platform.machine(), _NATIVE)
    flags = [plain if flag == _NATIVE else flag for flag in build._FLAGS]
    command = [build.find_compiler(), *flags, "-o", str(target), str(build._ENTRY)]
    subprocess.run(command, check=True)
    return target


@pytest.fixture(scope="session", params=[1, 2], ids=["1-thread", "2-threads"])
def kernels(request: pytest.FixtureRequest, compiled: Path) -> Iterator[Library]:
    """The kernels with one and with two threads."""
    library = Library(ctypes.CDLL(str(compiled)), request.param)
    yield library
    library.close()
