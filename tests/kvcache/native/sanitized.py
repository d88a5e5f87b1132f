"""Running tests again over kernels built with the compiler's sanitizers."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from kvcache.native import build
from kvcache.native.build import Sources
from kvcache.native.compilers import find_compiler
from tests.kvcache.native.conftest import compiled_as

ROOT = Path(build.__file__).parents[2]
_DEBUGGED = "-Og", "-g1"
_ADDRESSES = (*_DEBUGGED, "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
_RACES = (*_DEBUGGED, "-fsanitize=thread")
_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
}


def check_addresses(libraries: Sequence[Sources], processor: str, *selection: str) -> None:
    """No bad access and no undefined behaviour in selected tests. libraries: that they need."""
    built = _compile(libraries, processor, *_ADDRESSES)
    # MLX throws, which the sanitizer follows only if the C++ runtime is there before it.
    _check(built, "libasan.so libstdc++.so.6", *selection)


def check_races(folder: Path, libraries: Sequence[Sources], *selection: str) -> None:
    """No two threads at one place unordered in selected tests."""
    built = _compile(libraries, build._THIS_PROCESSOR, *_RACES)
    # MLX itself is not built for the sanitizer, which then misreads its locks, nor is what numpy
    # multiplies by, which can do without threads.
    suppressions = folder / "suppressions"
    suppressions.write_text("race:libmlx.so\n")
    built["OPENBLAS_NUM_THREADS"] = "1"
    built["TSAN_OPTIONS"] = f"halt_on_error=1:suppressions={suppressions}"
    _check(built, "libtsan.so", *selection)


def _compile(libraries: Sequence[Sources], *told: str) -> dict[str, str]:
    """What tells the tests how their kernels were compiled."""
    build.build([compiled_as(each, *told) for each in libraries], lambda: False)
    return {"EMBER_TEST_FLAGS": " ".join(told)}


def _check(environment: dict[str, str], runtimes: str, *selection: str) -> None:
    preload = " ".join(map(_runtime, runtimes.split()))
    # What a sanitizer says as it ends the process, pytest would keep for a test that never ends.
    options = ("-q", "-x", "-p", "no:cacheprovider", "--capture=sys")
    command = [sys.executable, "-m", "pytest", *options, *selection]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | _OPTIONS | environment | {"LD_PRELOAD": preload},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout


def _runtime(name: str) -> str:
    command = [find_compiler(), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
