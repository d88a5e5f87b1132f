"""Compiles the native kernels once, for this very machine, with the system's compiler.

The library lies in the user's cache under two hashes: of all it depends on
(sources, flags, compiler and processor), and of its own bytes, which are compared
before they are loaded, since a file that was cut short kills the process. What
others can write is never loaded: they would be us. Two processes may build at
once: each writes a file of its own and moves it into place. Knows nothing of what
the kernels do.
"""

import atexit
import ctypes
import hashlib
import os
import platform
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import platformdirs

from kvcache.errors import CacheError, reason

_FOLDER = Path(__file__).parent
_ENTRY = _FOLDER / "operations.cpp"
_COMPILERS = ("c++", "g++", "clang++")
# Older clang knows no -march=native on ARM.
_THIS_PROCESSOR = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
_FLAGS = (
    *("-std=c++20", "-O3", "-fPIC", "-shared", "-pthread"),
    *(_THIS_PROCESSOR, "-Wall", "-Wextra", "-Wno-psabi"),
    # GCC 12's own AVX-512 headers trip these two.
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
)
_OWNER_ONLY = 0o700
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
# A busy machine may take minutes.
_SECONDS = 600
_ASK_SECONDS = 0.1


class NativeUnavailableError(CacheError):
    """The native kernels cannot be built or loaded here; the message says what to install."""


class BuildStoppedError(CacheError):
    """Whoever asked for the kernels does not want them any more."""


def load() -> ctypes.CDLL:
    """The compiled kernels, built first where the cache does not have them whole.

    A cached file that does not load is built again once. Raises
    NativeUnavailableError.
    """
    if path := built():
        with suppress(OSError):
            return ctypes.CDLL(str(path))
    compiler = find_compiler()
    path = _build(compiler, _stem(compiler))
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailableError(
            f"the compiled kernels do not load: {reason(error)}"
        ) from error


def built() -> Path | None:
    """The library in the cache, as we once built it; None where `load` has to compile it.

    Raises NativeUnavailableError.
    """
    stem = _stem(find_compiler())
    return next((path for path in _candidates(stem) if _is_usable(path)), None)


def build(stopped: Callable[[], bool]) -> None:
    """Compile the kernels, to be loaded later.

    stopped: asked again and again; once it says yes, the compiler is killed and
    BuildStoppedError raised. Raises NativeUnavailableError.
    """
    compiler = find_compiler()
    _build(compiler, _stem(compiler), stopped)


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


def _stem(compiler: str) -> Path:
    """How the path of a library of these sources, flags, compiler and processor begins."""
    digest = hashlib.sha256()
    for source in sorted(_FOLDER.glob("*.[ch]*")):
        digest.update(source.name.encode() + source.read_bytes())
    version = _run([compiler, "--version"]).stdout
    for part in (*_FLAGS, compiler, version, platform.machine(), _processor()):
        digest.update(part.encode() + b"\0")
    override = os.environ.get("EMBER_CACHE")
    root = Path(override).expanduser() if override else platformdirs.user_cache_path("ember")
    return root / "native" / f"kernels-{digest.hexdigest()[:24]}"


def _candidates(stem: Path) -> list[Path]:
    return sorted(stem.parent.glob(f"{stem.name}-*.so"))


def _is_usable(path: Path) -> bool:
    """Whether only we can have written a library, and its bytes are those of its name."""
    try:
        ours = _is_ours(path.parent) and _is_ours(path)
        return ours and path.stem.endswith("-" + _hash(path))
    except OSError:
        return False


def _is_ours(path: Path) -> bool:
    """Whether nobody but us and the system's administrator can write a file or folder."""
    found = path.stat()
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & _OTHERS_WRITE


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _build(compiler: str, stem: Path, stopped: Callable[[], bool] | None = None) -> Path:
    """Compile into a file whose path begins with `stem`; what is not usable there goes."""
    damaged = [path for path in _candidates(stem) if not _is_usable(path)]
    with _told(stem.parent, damaged):
        _make_ours(stem.parent)
        handle, name = tempfile.mkstemp(suffix=".so", dir=stem.parent)
        os.close(handle)
    staged = Path(name)
    try:
        done = _run([compiler, *_FLAGS, "-o", str(staged), str(_ENTRY)], stopped)
        if done.returncode:
            reason = next((s for s in done.stderr.splitlines() if "error" in s), "no reason given")
            raise NativeUnavailableError(f"{compiler} failed on the CPU kernels: {reason}")
        with _told(stem.parent, damaged):
            for path in damaged:
                path.unlink(missing_ok=True)
            # Linkers replace the file by one that follows the umask.
            staged.chmod(_OWNER_ONLY)
            return staged.replace(stem.with_name(f"{stem.name}-{_hash(staged)}.so"))
    finally:
        staged.unlink(missing_ok=True)


def _make_ours(folder: Path) -> None:
    """Make the folder, or close it to others; the libraries that they may have put there go.

    Raises OSError, or NativeUnavailableError where it stays open to them.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(_OWNER_ONLY, exist_ok=True)
    if _is_ours(folder):
        return
    if folder.stat().st_uid == os.geteuid():
        folder.chmod(_OWNER_ONLY)
        for path in folder.glob("kernels-*.so"):
            path.unlink(missing_ok=True)
    if not _is_ours(folder):
        raise NativeUnavailableError(
            f"the compiled CPU kernels cannot be kept: others can write to {folder}; "
            "point EMBER_CACHE at a folder of your own"
        )


@contextmanager
def _told(folder: Path, damaged: list[Path]) -> Iterator[None]:
    """Raises NativeUnavailableError where the folder cannot be written."""
    try:
        yield
    except OSError as error:
        because = f"{damaged[0]} is damaged or not ours; " if damaged else ""
        raise NativeUnavailableError(
            f"the compiled CPU kernels cannot be kept: {because}cannot write to {folder}: "
            f"{reason(error)}; point EMBER_CACHE at a folder that can be written"
        ) from error


def _run(
    command: list[str], stopped: Callable[[], bool] | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        # The group of its own is for `_kill`; without one, Ctrl-C reaches the compiler too.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=stopped is not None,
        )
    except OSError as error:
        raise NativeUnavailableError(f"{command[0]} cannot be run: {reason(error)}") from error
    end = partial(_kill, process, group=stopped is not None)
    # This may be a thread that an interrupted program does not wait for.
    atexit.register(end)
    until = time.monotonic() + _SECONDS
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                out, err = process.communicate(timeout=_ASK_SECONDS)
                return subprocess.CompletedProcess(command, process.returncode, out, err)
            if stopped is not None and stopped():
                raise BuildStoppedError("the compilation of the kernels was stopped")
            if time.monotonic() > until:
                raise NativeUnavailableError(f"{command[0]} has not ended in {_SECONDS} s")
    finally:
        end()
        process.communicate()
        atexit.unregister(end)


def _kill(process: subprocess.Popen[str], *, group: bool) -> None:
    """End the compiler; with its group, the passes that it has started too."""
    if process.poll() is not None:
        return
    if group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def _processor() -> str:
    """What the native architecture depends on: the processor's name and features."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
