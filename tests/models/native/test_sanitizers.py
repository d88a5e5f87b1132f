"""The same tests again, over both libraries built with the compiler's sanitizers."""

from collections.abc import Iterable
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
LIBRARIES = [library.SOURCES, kernels.SOURCES, *CODES]
# One type of each family. What is a type's own on other processors, how its blocks are decoded, is
# compiled and run for this one too.
SOME = TensorType.F16, TensorType.Q4_1, TensorType.Q4_K, TensorType.IQ3_S
OTHERS = " or ".join(kind.name for kind in TensorType if kind not in SOME)


@pytest.mark.parametrize(
    ("architecture", "kinds", "selected"),
    [(NATIVE, TensorType, SELECTED), (PORTABLE, SOME, f"{SELECTED} and not ({OTHERS})")],
    ids=["native", "portable"],
)
def test_no_bad_access_and_no_undefined_behaviour(
    architecture: str, kinds: Iterable[TensorType], selected: str
) -> None:
    files = (f"{FOLDER}/test_{name}.py" for name in TESTS)
    libraries = [*LIBRARIES, *map(kernels.products, kinds)]
    check_addresses(libraries, architecture, "-k", selected, *files)


def test_threads_do_not_race(tmp_path: Path) -> None:
    selected = "2-threads and (feed_forward or many_rows or rows_at_once)"
    libraries = [*LIBRARIES, *map(kernels.products, SOME)]
    check_races(tmp_path, libraries, "-k", f"{selected} and not ({OTHERS})", FOLDER)
