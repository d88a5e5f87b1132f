"""Compiles native kernels once, for this very machine, with the system's compiler.

A library lies in the user's cache under two hashes: of all it depends on (sources, flags,
compiler and processor), and of its own bytes (kept.py). One process compiles at a time,
and others take what it made; where disks have no locks each compiles into a folder of its
own and moves the result into place. Knows nothing of what the kernels do, nor whose they
are.
"""

import ctypes
import hashlib
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from kvcache.errors import NativeUnavailableError, reason
from kvcache.native import compilers, kept
from kvcache.native.compilers import find_compiler

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
# While it is compiled.
_LIBRARY = "library.so"


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
        fast = _FAST if "clang" in compilers.version(compiler) else _FAST_GCC
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
    return kept.usable(_stem(find_compiler(), sources))


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
    found = {sources: kept.usable(stem) for sources, stem in stems.items()}
    if None in found.values():
        if stopped is None:
            print("ember: compiling the CPU kernels (once, some seconds)", file=sys.stderr)
        for stem in stems.values():
            kept.make_ours(stem)
        with kept.turn(stopped):
            # Another process may have compiled them while this one waited.
            found = {sources: kept.usable(stem) for sources, stem in stems.items()}
            missing = {each: stems[each] for each, path in found.items() if path is None}
            made = _compile_all(compiler, missing, stopped)
    return [found[each] or made[each] for each in wanted]


def _compile_all(
    compiler: str, missing: Mapping[Sources, Path], stopped: Callable[[], bool] | None
) -> dict[Sources, Path]:
    """Libraries by how their paths begin; returns their whole paths."""
    if not missing:
        return {}
    with kept.staged(next(iter(missing.values())), len(missing)) as staged:
        folders = dict(zip(missing, staged, strict=True))
        objects = [(each, each.objects(compiler, at)) for each, at in folders.items()]
        _compile(compiler, objects, staged[0].parent, stopped)
        links = [(each, [each.link(compiler, at)]) for each, at in folders.items()]
        _compile(compiler, links, staged[0].parent, stopped)
        return {each: kept.keep(at / _LIBRARY, missing[each]) for each, at in folders.items()}


def _compile(
    compiler: str,
    work: Sequence[tuple[Sources, list[list[str]]]],
    scratch: Path,
    stopped: Callable[[], bool] | None,
) -> None:
    """Run the commands of all libraries at the same time. scratch: for what compilers leave."""
    owners = [sources for sources, commands in work for _ in commands]
    commands = [command for _, own in work for command in own]
    for done, sources in zip(compilers.run(commands, stopped, scratch), owners, strict=True):
        if done.returncode:
            raise NativeUnavailableError(
                f"{compiler} failed on the CPU kernels of {sources.entry.name}: "
                f"{compilers.complaint(done)}"
            )


def _stem(compiler: str, sources: Sources) -> Path:
    """How the path of a library of these sources, flags, compiler and processor begins."""
    digest = hashlib.sha256()
    for folder in sources.folders:
        digest.update(_digest(folder))
    files = (file.name for file in (sources.entry, *sources.parts))
    here = compiler, compilers.version(compiler), platform.machine(), compilers.processor()
    for part in (*files, *sources.told(compiler), *here):
        digest.update(part.encode() + b"\0")
    return kept.kernels_folder() / f"kernels-{digest.hexdigest()[:24]}"


@cache
def _digest(folder: Path) -> bytes:
    """Of all files of C++ in a folder."""
    digest = hashlib.sha256()
    for source in sorted(folder.glob("*.[ch]*")):
        digest.update(source.name.encode() + source.read_bytes())
    return digest.digest()
