"""Running tests again over kernels built with the compiler's sanitizers."""

import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kvcache.native import build
from kvcache.native.build import Sources
from tests.kvcache.native.conftest import compile_kernels

ROOT = Path(build.__file__).parents[2]
_ADDRESSES = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
}


def check_addresses(
    folder: Path, libraries: Mapping[str, Sources], architecture: str, *selection: str
) -> None:
    """No bad access and no undefined behaviour in selected tests.

    libraries: by the environment variable that tells the tests of each.
    """
    built = _compile(folder, libraries, architecture, *_ADDRESSES)
    # MLX throws, which the sanitizer follows only if the C++ runtime is there before it.
    _check(built, "libasan.so libstdc++.so.6", *selection)


def check_races(folder: Path, libraries: Mapping[str, Sources], *selection: str) -> None:
    """No two threads at one place unordered in selected tests."""
    built = _compile(folder, libraries, build._THIS_PROCESSOR, "-fsanitize=thread")
    # MLX itself is not built for the sanitizer, which then misreads its locks, nor is what numpy
    # multiplies by, which can do without threads.
    suppressions = folder / "suppressions"
    suppressions.write_text("race:libmlx.so\n")
    built["OPENBLAS_NUM_THREADS"] = "1"
    built["TSAN_OPTIONS"] = f"halt_on_error=1:suppressions={suppressions}"
    _check(built, "libtsan.so", *selection)


def _compile(
    folder: Path, libraries: Mapping[str, Sources], architecture: str, *flags: str
) -> dict[str, str]:
    built = {variable: str(folder / f"{variable}.so") for variable in libraries}
    with ThreadPoolExecutor() as side_by_side:
        compilers = [
            side_by_side.submit(
                compile_kernels, sources, Path(built[variable]), architecture, "-Og", "-g1", *flags
            )
            for variable, sources in libraries.items()
        ]
        for compiler in compilers:
            compiler.result()
    return built


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
    command = [build.find_compiler(), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
