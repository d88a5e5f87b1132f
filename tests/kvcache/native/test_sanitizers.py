"""The same tests again, over kernels built with the compiler's sanitizers."""

from pathlib import Path

import pytest

from kvcache.native.library import SOURCES
from tests.kvcache.native.conftest import CODES, NATIVE, PORTABLE
from tests.kvcache.native.sanitized import check_addresses, check_races

FOLDER = "tests/kvcache/native"
TESTS = ("attention", "codec", "tiers")
LIBRARIES = [SOURCES, *CODES]


@pytest.mark.parametrize("architecture", [NATIVE, PORTABLE], ids=["native", "portable"])
def test_no_bad_access_and_no_undefined_behaviour(architecture: str) -> None:
    files = (f"{FOLDER}/test_{name}.py" for name in TESTS)
    check_addresses(LIBRARIES, architecture, "-k", "2-threads", *files)


def test_threads_do_not_race(tmp_path: Path) -> None:
    selected = "2-threads and (padding or its_definition or reads_views)"
    check_races(tmp_path, LIBRARIES, "-k", selected, FOLDER)
