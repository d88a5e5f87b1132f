"""Compiles native kernels once, for this very machine, with the system's compiler.

A library lies in the user's cache under two hashes: of all it depends on
(sources, flags, compiler and processor), and of its own bytes, which are compared
before they are loaded, since a file that was cut short kills the process. What
others can write is never loaded: they would be us. One process compiles at a time,
and others take what it made; where disks have no locks each compiles into a folder
of its own and moves the result into place. Knows nothing of what the kernels do, nor
whose they are.
"""

import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from kvcache.cache_folder import cache_folder
from kvcache.errors import CacheError, reason
from kvcache.native import programs

_COMPILERS = ("c++", "g++", "clang++")
# Older clang knows no -march=native on ARM.
_THIS_PROCESSOR = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
_FLAGS = (
    *("-std=c++20", "-fPIC", "-shared", "-pthread", "-pipe"),
    *("-Wall", "-Wextra", "-Wno-psabi"),
    # GCC 12's own AVX-512 headers trip these two.
    *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
)
# What of -O3 makes these loops fast: the rest takes a fifth more of GCC's time.
_FAST_GCC = ("-O2", "-fpeel-loops", "-ftree-vectorize", "-fvect-cost-model=dynamic")
_FAST = ("-O3",)
# In a folder of its own, while it is compiled.
_LIBRARY, _FOLDER = "library.so", "compiling-"
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

    entry: the file that it is called by. parts: more files, compiled beside it. headers: the
    folders whose headers they include, beside their own. processor, flags: what the compiler is
    told of the processor, and beside what it is always told. All files are compiled side by side,
    in this order: what takes longest comes first.
    """

    entry: Path
    parts: tuple[Path, ...] = ()
    headers: tuple[Path, ...] = ()
    processor: str = _THIS_PROCESSOR
    flags: tuple[str, ...] = ()

    def told(self, compiler: str) -> tuple[str, ...]:
        """What a compiler is told, but for files."""
        fast = _FAST if "clang" in _version(compiler) else _FAST_GCC
        return *_FLAGS, *fast, self.processor, *self.flags

    def beside(self, other: "Sources") -> "Sources":
        """The same, for the processor of another library and with its flags."""
        return replace(self, processor=other.processor, flags=(*self.flags, *other.flags))

    @property
    def folders(self) -> tuple[Path, ...]:
        """All folders; every file of C++ in them counts."""
        return (self.entry.parent, *self.headers)

    def command(self, compiler: str, target: Path) -> list[str]:
        """How `target` is compiled, a file after the other."""
        return [*self._compile(compiler, target), str(self.entry), *map(str, self.parts)]

    def objects(self, compiler: str, folder: Path) -> list[list[str]]:
        """How each file is compiled into an object in `folder`."""
        return [
            [*self._compile(compiler, folder / f"{file.stem}.o"), "-c", str(file)]
            for file in (self.entry, *self.parts)
        ]

    def _compile(self, compiler: str, target: Path) -> list[str]:
        headers = (f"-I{each}" for each in self.headers)
        return [compiler, *self.told(compiler), *headers, "-o", str(target)]

    def link(self, compiler: str, folder: Path) -> list[str]:
        """How the objects in `folder` become a library there."""
        objects = sorted(map(str, folder.glob("*.o")))
        return [compiler, *self.told(compiler), "-o", str(folder / _LIBRARY), *objects]


def load(sources: Sources) -> ctypes.CDLL:
    """The compiled kernels, built first where the cache does not have them whole.

    A cached file that does not load is built again once. Raises
    NativeUnavailableError.
    """
    if path := built(sources):
        with suppress(OSError):
            return ctypes.CDLL(str(path))
        with suppress(OSError):
            path.unlink()
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
    return _usable(_stem(find_compiler(), sources))


def missing(wanted: Iterable[Sources]) -> list[Sources]:
    """Those that `load` has to compile. Raises NativeUnavailableError."""
    return [each for each in wanted if built(each) is None]


def build(wanted: Sequence[Sources], stopped: Callable[[], bool] | None = None) -> list[Path]:
    """Compile the libraries that are not there, to be loaded later, all at the same time.

    stopped: asked again and again; once it says yes, the compilers are killed and
    BuildStoppedError raised. Without it nobody watches, and a line on stderr says what takes
    so long. Raises NativeUnavailableError.
    """
    compiler = find_compiler()
    stems = {sources: _stem(compiler, sources) for sources in wanted}
    found = {sources: _usable(stem) for sources, stem in stems.items()}
    if None in found.values():
        if stopped is None:
            print("ember: compiling the CPU kernels (once, some seconds)", file=sys.stderr)
        for stem in stems.values():
            with _told(stem):
                _make_ours(stem.parent)
        with _turn(kernels_folder(), stopped):
            # Another process may have compiled them while this one waited.
            found = {sources: _usable(stem) for sources, stem in stems.items()}
            missing = {each: stems[each] for each, path in found.items() if path is None}
            made = _compile_all(compiler, missing, stopped)
    return [found[each] or made[each] for each in wanted]


def _compile_all(
    compiler: str, missing: Mapping[Sources, Path], stopped: Callable[[], bool] | None
) -> dict[Sources, Path]:
    """Libraries by how their paths begin; returns their whole paths."""
    if not missing:
        return {}
    with _staged(next(iter(missing.values()))) as staged:
        folders = {each: staged / str(number) for number, each in enumerate(missing)}
        for folder in folders.values():
            folder.mkdir()
        objects = [(each, each.objects(compiler, at)) for each, at in folders.items()]
        _compile(compiler, objects, staged, stopped)
        links = [(each, [each.link(compiler, at)]) for each, at in folders.items()]
        _compile(compiler, links, staged, stopped)
        return {each: _keep(at / _LIBRARY, missing[each]) for each, at in folders.items()}


@contextmanager
def _turn(folder: Path, stopped: Callable[[], bool] | None) -> Iterator[None]:
    """Wait until nobody else compiles into the folder.

    A turn ends with its process, however that ends; what a killed one left half done goes. On a
    disk without locks nobody waits.
    """
    until = time.monotonic() + _SECONDS
    handle = os.open(folder, os.O_RDONLY)
    try:
        while (is_ours := _lock(handle)) is False:
            _go_on(until, stopped)
            time.sleep(_ASK_SECONDS)
        for left in folder.glob(f"{_FOLDER}*") if is_ours else ():
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(handle)


def _lock(handle: int) -> bool | None:
    """Whether it is locked now; None where there are no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _go_on(until: float, stopped: Callable[[], bool] | None) -> None:
    """Raise what ends a build: nobody wants it any more, or it has taken too long."""
    if stopped is not None and stopped():
        raise BuildStoppedError("the compilation of the kernels was stopped")
    if time.monotonic() > until:
        raise NativeUnavailableError(f"a compiler has not ended in {_SECONDS} s")


def _compile(
    compiler: str,
    work: Sequence[tuple[Sources, list[list[str]]]],
    scratch: Path,
    stopped: Callable[[], bool] | None,
) -> None:
    """Run the commands of all libraries at the same time."""
    owners = [sources for sources, commands in work for _ in commands]
    commands = [command for _, own in work for command in own]
    for done, sources in zip(_run(commands, stopped, scratch), owners, strict=True):
        if done.returncode:
            raise NativeUnavailableError(
                f"{compiler} failed on the CPU kernels of {sources.entry.name}: {_complaint(done)}"
            )


def _complaint(done: programs.Ended) -> str:
    """The first line that tells of an error, else the last one, else how it ended."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    ended = f"exit code {done.returncode}" if done.returncode > 0 else "it was killed"
    return next((line for line in lines if "error" in line), lines[-1] if lines else ended)


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
        digest.update(_digest(folder))
    files = (file.name for file in (sources.entry, *sources.parts))
    here = compiler, _version(compiler), platform.machine(), _processor()
    for part in (*files, *sources.told(compiler), *here):
        digest.update(part.encode() + b"\0")
    return kernels_folder() / f"kernels-{digest.hexdigest()[:24]}"


@cache
def _digest(folder: Path) -> bytes:
    """Of all files of C++ in a folder."""
    digest = hashlib.sha256()
    for source in sorted(folder.glob("*.[ch]*")):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.digest()


def kernels_folder() -> Path:
    """Where compiled libraries are kept."""
    return cache_folder() / "native"


@cache
def _version(compiler: str) -> str:
    (done,) = _run([[compiler, "--version"]])
    return done.stdout


def _candidates(stem: Path) -> list[Path]:
    return sorted(stem.parent.glob(f"{stem.name}-*.so"))


def _usable(stem: Path) -> Path | None:
    return next((path for path in _candidates(stem) if _is_usable(path)), None)


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
    """A folder of our own beside where a library will be, to compile in; gone afterwards."""
    with ExitStack() as stack:
        with _told(stem):
            made = tempfile.TemporaryDirectory(
                prefix=_FOLDER, dir=stem.parent, ignore_cleanup_errors=True
            )
        yield Path(stack.enter_context(made))


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
    commands: Sequence[list[str]],
    stopped: Callable[[], bool] | None = None,
    scratch: Path | None = None,
) -> list[programs.Ended]:
    """Run programs to their ends, or until that took too long."""
    until = time.monotonic() + _SECONDS
    try:
        return programs.run(
            commands,
            lambda: _go_on(until, stopped),
            group=stopped is not None,
            scratch=scratch,
        )
    except OSError as error:
        raise NativeUnavailableError(f"{commands[0][0]} cannot be run: {reason(error)}") from error


@cache
def _processor() -> str:
    """What the native architecture depends on: the processor's name and features."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
