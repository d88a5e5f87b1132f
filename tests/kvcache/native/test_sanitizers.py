"""The same tests again, over kernels built with the compiler's sanitizers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvcache.native import build
from tests.kvcache.native.conftest import NATIVE, PORTABLE, compile_kernels

ROOT = Path(build.__file__).parents[2]
FOLDER = "tests/kvcache/native"
TESTS = ("layers", "products", "attention", "codec", "tiers")
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
}


def _runtime(compiler: str, name: str) -> str:
    command = [compiler, f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _run(library: Path, runtime: str, *selection: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | OPTIONS
    environment |= {"EMBER_TEST_KERNELS": str(library), "LD_PRELOAD": runtime}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *selection]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("architecture", [NATIVE, PORTABLE], ids=["native", "portable"])
def test_no_bad_access_and_no_undefined_behaviour(tmp_path: Path, architecture: str) -> None:
    library = tmp_path / "sanitized.so"
    sanitizers = ("-Og", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    compile_kernels(library, architecture, *sanitizers)
    # MLX throws, which the sanitizer follows only if the C++ runtime is there before it.
    names = "libasan.so", "libstdc++.so.6"
    runtime = " ".join(_runtime(build.find_compiler(), name) for name in names)
    files = (f"{FOLDER}/test_{name}.py" for name in TESTS)
    done = _run(library, runtime, "-k", "2-threads", *files)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout


def test_threads_do_not_race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "sanitized.so"
    compile_kernels(library, NATIVE, "-Og", "-g1", "-fsanitize=thread")
    runtime = _runtime(build.find_compiler(), "libtsan.so")
    # MLX itself is not built for the sanitizer, which then misreads its locks.
    suppressions = tmp_path / "suppressions"
    suppressions.write_text("race:libmlx.so\n")
    monkeypatch.setitem(OPTIONS, "TSAN_OPTIONS", f"halt_on_error=1:suppressions={suppressions}")
    selection = (
        "-k",
        "2-threads and (feed_forward or padding or many_rows or its_definition or reads_views)",
        FOLDER,
    )
    done = _run(library, runtime, *selection)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
