"""Compiles native kernels once, for this very machine, with the system's compiler.

A library lies in the user's cache under two hashes: of all it depends on
(sources, flags, compiler and processor), and of its own bytes, which are compared
before they are loaded, since a file that was cut short kills the process. What
others can write is never loaded: they would be us. Two processes may build at
once: each writes a file of its own and moves it into place. Knows nothing of what
the kernels do, nor whose they are.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from kvcache.cache_folder import cache_folder
from kvcache.errors import CacheError, reason

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


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What a library is compiled from.

    entry: the file that includes the rest. headers: the folders whose headers it
    includes, beside its own.
    """

    entry: Path
    headers: tuple[Path, ...] = ()

    @property
    def folders(self) -> tuple[Path, ...]:
        """All folders; every file of C++ in them counts."""
        return (self.entry.parent, *self.headers)

    def command(self, compiler: str, target: Path) -> list[str]:
        """How `target` is compiled."""
        includes = (f"-I{folder}" for folder in self.headers)
        return [compiler, *_FLAGS, *includes, "-o", str(target), str(self.entry)]


def load(sources: Sources) -> ctypes.CDLL:
    """The compiled kernels, built first where the cache does not have them whole.

    A cached file that does not load is built again once. Raises
    NativeUnavailableError.
    """
    if path := built(sources):
        with suppress(OSError):
            return ctypes.CDLL(str(path))
    (path,) = build([sources])
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailableError(
            f"the compiled kernels do not load: {reason(error)}"
        ) from error


def built(sources: Sources) -> Path | None:
    """The library in the cache, as we once built it; None where `load` has to compile it.

    Raises NativeUnavailableError.
    """
    stem = _stem(find_compiler(), sources)
    return next((path for path in _candidates(stem) if _is_usable(path)), None)


def build(wanted: Sequence[Sources], stopped: Callable[[], bool] | None = None) -> list[Path]:
    """Compile libraries, to be loaded later, all at the same time.

    stopped: asked again and again; once it says yes, the compilers are killed and
    BuildStoppedError raised. Raises NativeUnavailableError.
    """
    compiler = find_compiler()
    stems = [_stem(compiler, sources) for sources in wanted]
    with ExitStack() as stack:
        staged = [stack.enter_context(_staged(stem)) for stem in stems]
        commands = [
            sources.command(compiler, path) for sources, path in zip(wanted, staged, strict=True)
        ]
        kept = []
        for done, path, stem, sources in zip(
            _run(commands, stopped), staged, stems, wanted, strict=True
        ):
            if done.returncode:
                raise NativeUnavailableError(
                    f"{compiler} failed on the CPU kernels of {sources.entry.name}: "
                    f"{_complaint(done.stderr)}"
                )
            kept.append(_keep(path, stem))
        return kept


def _complaint(said: str) -> str:
    """The first line that tells of an error, else the last one."""
    lines = [line for line in said.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[-1] if lines else "no reason")


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


def _stem(compiler: str, sources: Sources) -> Path:
    """How the path of a library of these sources, flags, compiler and processor begins."""
    digest = hashlib.sha256()
    for folder in sources.folders:
        for source in sorted(folder.glob("*.[ch]*")):
            digest.update(source.name.encode() + source.read_bytes())
    for part in (*_FLAGS, compiler, _version(compiler), platform.machine(), _processor()):
        digest.update(part.encode() + b"\0")
    return cache_folder() / "native" / f"kernels-{digest.hexdigest()[:24]}"


@cache
def _version(compiler: str) -> str:
    (done,) = _run([[compiler, "--version"]])
    return done.stdout


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


@contextmanager
def _staged(stem: Path) -> Iterator[Path]:
    """A file of our own beside where a library will be, to compile into; gone afterwards."""
    with _told(stem):
        _make_ours(stem.parent)
        handle, name = tempfile.mkstemp(suffix=".so", dir=stem.parent)
        os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _keep(staged: Path, stem: Path) -> Path:
    """Move what was compiled into its place; what is not usable there goes."""
    with _told(stem):
        for path in _damaged(stem):
            path.unlink(missing_ok=True)
        # Linkers replace the file by one that follows the umask.
        staged.chmod(_OWNER_ONLY)
        return staged.replace(stem.with_name(f"{stem.name}-{_hash(staged)}.so"))


def _damaged(stem: Path) -> list[Path]:
    return [path for path in _candidates(stem) if not _is_usable(path)]


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
def _told(stem: Path) -> Iterator[None]:
    """Raises NativeUnavailableError where the folder cannot be written."""
    try:
        yield
    except OSError as error:
        damaged, folder = _damaged(stem), stem.parent
        because = f"{damaged[0]} is damaged or not ours; " if damaged else ""
        raise NativeUnavailableError(
            f"the compiled CPU kernels cannot be kept: {because}cannot write to {folder}: "
            f"{reason(error)}; point EMBER_CACHE at a folder that can be written"
        ) from error


def _run(
    commands: Sequence[list[str]], stopped: Callable[[], bool] | None = None
) -> list[subprocess.CompletedProcess[str]]:
    """Run programs at the same time, to their ends or until one was waited for too long."""
    until = time.monotonic() + _SECONDS
    with ExitStack() as stack:
        processes = [
            stack.enter_context(_running(command, group=stopped is not None))
            for command in commands
        ]
        return [_ended(process, until, stopped) for process in processes]


@contextmanager
def _running(command: list[str], *, group: bool) -> Iterator[subprocess.Popen[str]]:
    """A program that does not outlive us. group: of its own, so that Ctrl-C is ours to act on."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=group,
        )
    except OSError as error:
        raise NativeUnavailableError(f"{command[0]} cannot be run: {reason(error)}") from error
    end = partial(_kill, process, group=group)
    # This may be a thread that an interrupted program does not wait for.
    atexit.register(end)
    try:
        yield process
    finally:
        end()
        process.communicate()
        atexit.unregister(end)


def _ended(
    process: subprocess.Popen[str], until: float, stopped: Callable[[], bool] | None
) -> subprocess.CompletedProcess[str]:
    while True:
        with suppress(subprocess.TimeoutExpired):
            out, err = process.communicate(timeout=_ASK_SECONDS)
            return subprocess.CompletedProcess(process.args, process.returncode, out, err)
        if stopped is not None and stopped():
            raise BuildStoppedError("the compilation of the kernels was stopped")
        if time.monotonic() > until:
            raise NativeUnavailableError(f"a compiler has not ended in {_SECONDS} s")


def _kill(process: subprocess.Popen[str], *, group: bool) -> None:
    """End the compiler; with its group, the passes that it has started too."""
    if process.poll() is not None:
        return
    if group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


@cache
def _processor() -> str:
    """What the native architecture depends on: the processor's name and features."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
