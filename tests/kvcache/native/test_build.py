"""Compiling the kernels: cached, safe for several processes, clear when impossible."""

import ctypes
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kvcache.config import Backend
from kvcache.errors import BuildStoppedError, EmberError, NativeUnavailableError
from kvcache.native import build, library
from kvcache.native.build import Sources
from kvcache.native.compilers import find_compiler
from kvcache.native.kept import kernels_folder
from models.gguf.tensor_types import TensorType
from models.native import kernels
from tests.kvcache.native.conftest import CODES, compiled_as
from tests.lasting_compiler import words_of_a_compiler
from tests.patience import patience, wait_until

ROOT = Path(build.__file__).parents[2]
ARM_COMPILER = "aarch64-linux-gnu-g++"
# All that there is to compile.
ALL = [library.SOURCES, kernels.SOURCES, *CODES, *map(kernels.products, TensorType)]
TO_THE_END = [
    library.SOURCES,
    kernels.SOURCES,
    library.ALL_CODES,
    library.codes(4),
    *map(kernels.products, (TensorType.Q4_1, TensorType.Q6_K, TensorType.F16)),
]
_TRIVIAL = 'extern "C" { void ember_start(int) {} }\n'


def _named(sources: Sources) -> str:
    """What a library is of: `codes 4`, `type Q4_1`."""
    of = [flag.partition("=")[2] for flag in sources.flags if "FAMILY" not in flag and "=" in flag]
    return " ".join([sources.entry.stem, *of])


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    """A folder with one trivial source, another of headers, and an empty cache."""
    monkeypatch.setenv("EMBER_CACHE", str(tmp_path / "cache"))
    return _sources(tmp_path, "trivial")


def _sources(folder: Path, name: str) -> Sources:
    entry, headers = folder / name / "entry.cpp", folder / "headers"
    for each in (entry.parent, headers):
        each.mkdir(exist_ok=True)
    entry.write_text(_TRIVIAL)
    (headers / "shared.h").write_text("")
    return Sources(entry=entry, headers=(headers,))


def _loads(sources: Sources) -> bool:
    """Whether a process of its own loads and calls the library of the sources."""
    child = os.fork()
    if not child:
        status = 1
        try:
            build.load(sources).ember_start(1)
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def _libraries(sources: Sources) -> list[Path]:
    return sorted((sources.entry.parents[1] / "cache" / "native").iterdir())


def test_is_compiled_once(sources: Sources) -> None:
    build.load(sources)
    (first,) = _libraries(sources)
    before = first.stat().st_mtime_ns
    build.load(sources)
    assert _libraries(sources) == [first]
    assert first.stat().st_mtime_ns == before


def test_a_changed_source_or_flag_is_another_library(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.load(sources)
    for folder in sources.folders:
        (folder / "extra.h").write_text("// changed\n")
        build._digest.cache_clear()
        build.load(sources)
    monkeypatch.setattr(build, "_FLAGS", (*build._FLAGS, "-O2"))
    build.load(sources)
    assert len(_libraries(sources)) == 4


def test_parts_are_compiled_and_linked(sources: Sources) -> None:
    part = sources.entry.with_name("part.cpp")
    part.write_text("int two() { return 2; }\n")
    sources.entry.write_text('int two();\nextern "C" int one() { return two() - 1; }\n')
    whole = replace(sources, parts=(part,))
    assert build.load(whole).one() == 1
    part.write_text("int two() { return 3; }\n")
    build._digest.cache_clear()
    assert build.load(whole).one() == 2
    part.write_text("#error not in a part\n")
    build._digest.cache_clear()
    with pytest.raises(NativeUnavailableError, match="not in a part"):
        build.load(whole)
    assert all(path.suffix == ".so" for path in _libraries(sources))


def test_a_compilation_can_be_stopped(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] || sleep 600\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert build.built(sources) is None
    asked = iter([False, True])
    with pytest.raises(BuildStoppedError):
        build.build([sources], lambda: next(asked))
    assert build.built(sources) is None
    assert _libraries(sources) == []


def test_a_compilation_ends_with_a_program_that_does_not_wait_for_it(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "import os, threading",
        "from kvcache.native import build, library",
        # More than run at a time: none that waits begins while the program ends.
        "every = [library.codes(bits) for bits in range(2, 2 + 2 * os.cpu_count())]",
        "args = [library.SOURCES, *every], lambda: False",
        "threading.Thread(target=build.build, args=args, daemon=True).start()",
        "WAIT",
    )
    assert words_of_a_compiler(tmp_path, monkeypatch, *program) == ""


COUNTING = """#!/bin/sh
[ "$1" = --version ] || {{ echo $$ >>{log}; while [ -e {gate} ]; do sleep 0.05; done; }}
exec {compiler} "$@"
"""


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often the compiler has been called, which waits for as long as a file `gate` is there."""
    log, compiler = tmp_path / "log", tmp_path / "compiler"
    real = find_compiler()
    compiler.write_text(COUNTING.format(log=log, gate=tmp_path / "gate", compiler=real))
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    return lambda: len(log.read_text().split()) if log.exists() else 0


def _building(sources: Sources) -> int:
    """A process of its own that builds; its number."""
    child = os.fork()
    if not child:
        status = 1
        try:
            build.build([sources])
            status = 0
        finally:
            os._exit(status)
    return child


def test_processes_that_start_at_once_share_one_build(
    sources: Sources, counted: Callable[[], int], tmp_path: Path
) -> None:
    (tmp_path / "gate").touch()
    first = _building(sources)
    wait_until(lambda: counted() == 1, 30)
    others = [_building(sources) for _ in range(2)]
    (tmp_path / "gate").unlink()
    assert [os.waitpid(each, 0)[1] for each in (first, *others)] == [0, 0, 0]
    assert counted() == 2  # compiled and linked
    assert len(_libraries(sources)) == 1


def test_who_waits_for_another_process_can_stop(
    sources: Sources, counted: Callable[[], int], tmp_path: Path
) -> None:
    (tmp_path / "gate").touch()
    other = _building(sources)
    wait_until(lambda: counted() == 1, 30)
    with pytest.raises(BuildStoppedError):
        build.build([sources], lambda: True)
    (tmp_path / "gate").unlink()
    assert os.waitpid(other, 0)[1] == 0
    assert counted() == 2


def test_a_killed_process_leaves_nothing_in_the_way(
    sources: Sources, counted: Callable[[], int], tmp_path: Path
) -> None:
    (tmp_path / "gate").touch()
    child = _building(sources)
    wait_until(lambda: counted() == 1, 30)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert [path.suffix for path in _libraries(sources)] == [""]  # what it compiled in
    (tmp_path / "gate").unlink()
    build.build([sources])
    assert [path.suffix for path in _libraries(sources)] == [".so"]


def test_a_killed_compiler_is_one_line_and_leaves_nothing(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, scratch = tmp_path / "compiler", tmp_path / "scratch"
    scratch.mkdir()
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] || { >$TMPDIR/cc.s; kill -9 $$; }\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("TMPDIR", str(scratch))
    with pytest.raises(NativeUnavailableError, match="it was killed"):
        build.load(sources)
    assert _libraries(sources) == []
    assert not any(scratch.iterdir())
    monkeypatch.delenv("CXX")
    build.load(sources)


def test_on_a_disk_without_locks_nobody_waits(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    left = kernels_folder() / "compiling-of-another"
    left.mkdir(parents=True)
    build.build([sources])
    assert left.exists()
    assert build.built(sources) is not None


def test_a_library_says_once_what_takes_so_long(
    sources: Sources, capfd: pytest.CaptureFixture[str]
) -> None:
    build.load(sources)
    assert capfd.readouterr().err == "ember: compiling the CPU kernels (once, some seconds)\n"
    build.load(sources)
    build.build([_sources(sources.entry.parents[1], "watched")], lambda: False)
    assert capfd.readouterr().err == ""


def test_libraries_are_compiled_at_the_same_time(sources: Sources, tmp_path: Path) -> None:
    other = _sources(tmp_path, "other")
    other.entry.write_text(_TRIVIAL + "// another\n")
    both = build.build([sources, other])
    assert both == [build.built(sources), build.built(other)]
    assert _libraries(sources) == sorted(both)


def test_both_compilers_run_at_once_and_are_stopped_together(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, started = tmp_path / "compiler", tmp_path / "started"
    compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit\necho >>{started}\nsleep 600\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))

    def both_run() -> bool:
        return started.exists() and started.read_text() == "\n\n"

    with pytest.raises(BuildStoppedError):
        build.build([sources, _sources(tmp_path, "other")], both_run)
    assert _libraries(sources) == []


def test_what_was_built_before_is_loaded(sources: Sources) -> None:
    build.build([sources])
    (built,) = _libraries(sources)
    assert build.built(sources) == built
    build.load(sources)
    assert _libraries(sources) == [built]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda content: content[: len(content) // 2],
    "cut to a page": lambda content: content[:4096],
    "emptied": lambda _: b"",
    "grown": lambda content: content + b"\0",
    "one bit": lambda content: content[:900] + bytes([content[900] ^ 4]) + content[901:],
    "zeros": lambda content: bytes(len(content)),
    "something else": lambda _: b"no library at all",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_library_is_never_loaded_but_built_again(
    sources: Sources, damage: Callable[[bytes], bytes]
) -> None:
    build.build([sources])
    (path,) = _libraries(sources)
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert build.built(sources) is None
    # Loaded by another process: a library that was cut short would end this one.
    assert _loads(sources)
    (repaired,) = _libraries(sources)
    assert build.built(sources) == repaired
    assert repaired.stat().st_size == len(content)
    # An older file of the same sources in its place, and nothing to compile with.
    repaired.write_bytes(damage(content))
    path.with_name("kernels-of-others.so").write_bytes(b"")
    assert build.built(sources) is None


OPEN = {"by group": 0o775, "by all": 0o757, "by all, sticky": 0o1777}


@pytest.mark.parametrize("mode", OPEN.values(), ids=OPEN)
@pytest.mark.parametrize("which", ["folder", "file"])
def test_what_others_can_write_is_never_loaded_but_built_again(
    sources: Sources, which: str, mode: int
) -> None:
    build.build([sources])
    (path,) = _libraries(sources)
    planted = path.with_name("kernels-of-another-version.so")
    planted.write_bytes(b"")
    opened = path.parent if which == "folder" else path
    opened.chmod(mode)
    assert build.built(sources) is None
    build.build([sources])
    assert build.built(sources) == path
    assert planted.exists() == (which == "file")
    assert [stat.S_IMODE(each.stat().st_mode) for each in (path.parent, path)] == [0o700, 0o700]


@pytest.mark.parametrize("umask", [0o077, 0o002, 0o000])
def test_what_is_built_is_ours_whatever_the_umask(sources: Sources, umask: int) -> None:
    before = os.umask(umask)
    try:
        build.build([sources])
    finally:
        os.umask(before)
    assert build.built(sources) is not None


def test_a_folder_of_somebody_else_is_one_line(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.build([sources])
    (path,) = _libraries(sources)
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0:
        # What the administrator has put there is used, and so is what it has closed.
        assert build.built(sources) == path
        os.chown(path.parent, 65534, 65534)
    assert build.built(sources) is None
    with pytest.raises(NativeUnavailableError) as caught:
        build.load(sources)
    assert f"others can write to {path.parent}; point EMBER_CACHE" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_library_that_cannot_be_repaired_is_one_line(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    build.build([sources])
    (path,) = _libraries(sources)
    path.write_bytes(path.read_bytes()[:5000])
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(NativeUnavailableError) as caught:
        build.load(sources)
    assert f"{path} is damaged or not ours; cannot write to {path.parent}" in str(caught.value)
    assert "EMBER_CACHE" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_library_that_loads_no_more_is_built_again(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is whole, but, say, the system's own libraries are others now."""
    build.build([sources])
    load, calls = ctypes.CDLL, []

    def refusing_once(path: str) -> ctypes.CDLL:
        calls.append(path)
        if len(calls) == 1:
            raise OSError("symbol not found")
        return load(path)

    monkeypatch.setattr("ctypes.CDLL", refusing_once)
    assert build.load(sources).ember_start(1) is not None
    assert len(calls) == 2


def test_a_failing_compiler_says_why(sources: Sources) -> None:
    sources.entry.write_text("#error not today\n")
    with pytest.raises(NativeUnavailableError, match=r"failed on the CPU kernels.*not today"):
        build.load(sources)
    assert _libraries(sources) == []


def test_no_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NativeUnavailableError, match=r"no-such-compiler.*apt install g"):
        build.load(library.SOURCES)


def test_an_unwritable_cache_is_one_clear_error(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = sources.entry.parents[1] / "file"
    blocked.write_text("")
    monkeypatch.setenv("EMBER_CACHE", str(blocked))
    with pytest.raises(NativeUnavailableError, match="cannot write to"):
        build.load(sources)


def test_without_kernels_plain_mlx_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise NativeUnavailableError("no compiler here")

    monkeypatch.setattr("kvcache.config.library", refuse)
    assert Backend.AUTO.resolve() in (Backend.REFERENCE, Backend.GPU)
    with pytest.raises(NativeUnavailableError, match="no compiler here"):
        Backend.CPU.resolve()


@pytest.mark.skipif(not shutil.which(ARM_COMPILER), reason=f"needs {ARM_COMPILER}")
@pytest.mark.parametrize("sources", ALL, ids=_named)
def test_compiles_for_arm_without_a_warning(tmp_path: Path, sources: Sources) -> None:
    """Some to their ends; of all others every template is made, and no code."""
    how = "-O1" if sources in TO_THE_END else "-fsyntax-only"
    arm = compiled_as(sources, "-mcpu=cortex-a76", how, "-Werror")
    command = arm.command(ARM_COMPILER, tmp_path / "arm.so")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_processes_may_build_at_once(tmp_path: Path) -> None:
    script = (
        "from kvcache.native.library import library; import numpy as np;print(library().threads)"
    )
    environment = {"EMBER_CACHE": str(tmp_path), "EMBER_THREADS": "3", "PATH": sys.exec_prefix}
    environment["PATH"] = "/usr/local/bin:/usr/bin:/bin"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    assert [process.communicate(timeout=patience(100))[0] for process in running] == ["3\n", "3\n"]
    (only,) = (tmp_path / "native").iterdir()
    assert only.suffix == ".so"


def test_threads_follow_the_physical_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMBER_THREADS", raising=False)
    assert library._threads() >= 1
    monkeypatch.setenv("EMBER_THREADS", "7")
    assert library._threads() == 7


@pytest.mark.parametrize("given", ["0", "-1", "x", "\u00b2", "1025", "9" * 11, "9" * 5000])
def test_what_is_no_number_of_threads_is_refused(
    monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("EMBER_THREADS", given)
    with pytest.raises(EmberError, match=r"got EMBER_THREADS=.*, expected a whole number, 1 to"):
        library._threads()
