"""The network's kernels over the cache's, in every form that this machine can run."""

import ctypes
import os
from pathlib import Path

import pytest

from kvcache.native.library import Library
from models.native.kernels import SOURCES, Kernels
from tests.kvcache.native.conftest import architecture, compiled, compiled_for
from tests.kvcache.native.conftest import kernels as library

__all__ = ["architecture", "compiled", "compiled_network", "kernels", "library"]

# A library to test in place of the usual two (see test_sanitizers), beside the cache's.
GIVEN = os.environ.get("EMBER_TEST_NETWORK")


@pytest.fixture(scope="session")
def compiled_network(architecture: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library under test."""
    folder = tmp_path_factory.mktemp("network")
    return Path(GIVEN) if GIVEN else compiled_for(architecture, SOURCES, folder)


@pytest.fixture(scope="session")
def kernels(compiled_network: Path, library: Library) -> Kernels:
    """The kernels with one and with two threads."""
    return Kernels(ctypes.CDLL(str(compiled_network)), library)
