"""The same tests again, over both libraries built with the compiler's sanitizers."""

from pathlib import Path

import pytest

from kvcache.native import library
from models.gguf.tensor_types import TensorType
from models.native import kernels
from tests.kvcache.native.conftest import CODES, NATIVE, PORTABLE
from tests.kvcache.native.sanitized import check_addresses, check_races

FOLDER = "tests/models/native"
TESTS = ("layers", "products")
# How the caches hold their tokens is for the tests of their own library.
SELECTED = "2-threads and not (HotDtype.BF16 or HotDtype.F32)"
LIBRARIES = [library.SOURCES, kernels.SOURCES, *CODES, *map(kernels.products, TensorType)]


@pytest.mark.parametrize("architecture", [NATIVE, PORTABLE], ids=["native", "portable"])
def test_no_bad_access_and_no_undefined_behaviour(architecture: str) -> None:
    files = (f"{FOLDER}/test_{name}.py" for name in TESTS)
    check_addresses(LIBRARIES, architecture, "-k", SELECTED, *files)


def test_threads_do_not_race(tmp_path: Path) -> None:
    selected = "2-threads and (feed_forward or many_rows or rows_at_once)"
    check_races(tmp_path, LIBRARIES, "-k", selected, FOLDER)
