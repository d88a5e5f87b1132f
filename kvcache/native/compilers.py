"""The system's C++ compilers: which there is, what it is, and how several run to their ends.

Knows no library and no folder that is kept.
"""

import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from kvcache.errors import BuildStoppedError, NativeUnavailableError, reason
from kvcache.native import programs

_COMPILERS = ("c++", "g++", "clang++")
# A busy machine may take minutes.
SECONDS = 600


def find_compiler() -> str:
    """The C++ compiler: the environment's CXX, or the first that is there."""
    wanted = os.environ.get("CXX")
    for name in (wanted,) if wanted else _COMPILERS:
        if found := shutil.which(name):
            return found
    raise NativeUnavailableError(
        f"no C++ compiler ({wanted or ', '.join(_COMPILERS)}): install one (Debian: apt install "
        "g++) to make the CPU tens of times faster"
    )


@cache
def version(compiler: str) -> str:
    """What a compiler says of itself."""
    (done,) = run([[compiler, "--version"]])
    return done.stdout


@cache
def processor() -> str:
    """What the native architecture depends on: the processor's name and features."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def run(
    commands: Sequence[list[str]],
    stopped: Callable[[], bool] | None = None,
    scratch: Path | None = None,
) -> list[programs.Ended]:
    """Run programs to their ends, or until that took too long."""
    until = time.monotonic() + SECONDS
    try:
        return programs.run(
            commands,
            lambda: go_on(until, stopped),
            group=stopped is not None,
            scratch=scratch,
        )
    except OSError as error:
        raise NativeUnavailableError(f"{commands[0][0]} cannot be run: {reason(error)}") from error


def go_on(until: float, stopped: Callable[[], bool] | None) -> None:
    """Raise what ends a build: nobody wants it any more, or it has taken too long."""
    if stopped is not None and stopped():
        raise BuildStoppedError("the compilation of the kernels was stopped")
    if time.monotonic() > until:
        raise NativeUnavailableError(f"a compiler has not ended in {SECONDS} s")


def complaint(done: programs.Ended) -> str:
    """The first line that tells of an error, else the last one, else how it ended."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    ended = f"exit code {done.returncode}" if done.returncode > 0 else "it was killed"
    return next((line for line in lines if "error" in line), lines[-1] if lines else ended)
