"""Running tests again over kernels built with the compiler's sanitizers."""

import os
import subprocess
import sys
from collections.abc import Mapping
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
    # MLX itself is not built for the sanitizer, which then misreads its locks.
    suppressions = folder / "suppressions"
    suppressions.write_text("race:libmlx.so\n")
    built["TSAN_OPTIONS"] = f"halt_on_error=1:suppressions={suppressions}"
    _check(built, "libtsan.so", *selection)


def _compile(
    folder: Path, libraries: Mapping[str, Sources], architecture: str, *flags: str
) -> dict[str, str]:
    built = {}
    for variable, sources in libraries.items():
        target = folder / f"{variable}.so"
        compile_kernels(sources, target, architecture, "-Og", "-g1", *flags)
        built[variable] = str(target)
    return built


def _check(environment: dict[str, str], runtimes: str, *selection: str) -> None:
    preload = " ".join(map(_runtime, runtimes.split()))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *selection]
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
