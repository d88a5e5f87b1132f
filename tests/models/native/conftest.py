"""The network's kernels over the cache's, in every form that this machine can run."""

import pytest

from kvcache.native.library import Library
from models.native.kernels import Kernels
from tests.kvcache.native.conftest import compiled
from tests.kvcache.native.conftest import kernels as library

__all__ = ["compiled", "kernels", "library"]


@pytest.fixture(scope="session")
def kernels(library: Library) -> Kernels:
    """The kernels with one and with two threads."""
    return Kernels(library)
