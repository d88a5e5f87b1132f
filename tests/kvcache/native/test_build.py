"""Compiling the kernels: cached, safe for several processes, clear when impossible."""

import ctypes
import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvcache.config import Backend
from kvcache.errors import EmberError
from kvcache.native import build, library
from tests.patience import patience

ROOT = Path(build.__file__).parents[2]
ARM_COMPILER = "aarch64-linux-gnu-g++"
_TRIVIAL = 'extern "C" { void ember_start(int) {} }\n'


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one trivial source, and an empty cache."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "operations.cpp").write_text(_TRIVIAL)
    monkeypatch.setattr(build, "_FOLDER", folder)
    monkeypatch.setattr(build, "_ENTRY", folder / "operations.cpp")
    monkeypatch.setenv("EMBER_CACHE", str(tmp_path / "cache"))
    return folder


def _loads() -> bool:
    """Whether a process of its own loads and calls the library of the sources."""
    child = os.fork()
    if not child:
        status = 1
        try:
            build.load().ember_start(1)
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def _libraries(sources: Path) -> list[Path]:
    return sorted((sources.parent / "cache" / "native").iterdir())


def test_is_compiled_once(sources: Path) -> None:
    build.load()
    (first,) = _libraries(sources)
    before = first.stat().st_mtime_ns
    build.load()
    assert _libraries(sources) == [first]
    assert first.stat().st_mtime_ns == before


def test_a_changed_source_or_flag_is_another_library(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.load()
    (sources / "extra.h").write_text("// changed\n")
    build.load()
    monkeypatch.setattr(build, "_FLAGS", (*build._FLAGS, "-O2"))
    build.load()
    assert len(_libraries(sources)) == 3


def test_a_compilation_can_be_stopped(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] || sleep 600\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert build.built() is None
    asked = iter([False, True])
    with pytest.raises(build.BuildStoppedError):
        build.build(lambda: next(asked))
    assert build.built() is None
    assert _libraries(sources) == []


def test_a_compilation_ends_with_a_program_that_does_not_wait_for_it(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, pipe = tmp_path / "compiler", tmp_path / "pipe"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit\n'
        f"exec 3>{pipe}\ntouch {pipe}-open\nsleep 20\necho survived >&3\n"
    )
    compiler.chmod(0o755)
    os.mkfifo(pipe)
    program = (
        "import pathlib, threading, time\n"
        "from kvcache.native import build\n"
        "args = [lambda: False]\n"
        "threading.Thread(target=build.build, args=args, daemon=True).start()\n"
        f"while not pathlib.Path('{pipe}-open').exists():\n    time.sleep(0.01)\n"
    )
    monkeypatch.setenv("CXX", str(compiler))
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    assert pipe.read_text() == ""
    assert process.wait() == 0


def test_what_was_built_before_is_loaded(sources: Path) -> None:
    build.build(lambda: False)
    (built,) = _libraries(sources)
    assert build.built() == built
    build.load()
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
    sources: Path, damage: Callable[[bytes], bytes]
) -> None:
    build.build(lambda: False)
    (path,) = _libraries(sources)
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert build.built() is None
    # Loaded by another process: a library that was cut short would end this one.
    assert _loads()
    (repaired,) = _libraries(sources)
    assert build.built() == repaired
    assert repaired.stat().st_size == len(content)
    # An older file of the same sources in its place, and nothing to compile with.
    repaired.write_bytes(damage(content))
    path.with_name("kernels-of-others.so").write_bytes(b"")
    assert build.built() is None


OPEN = {"by group": 0o775, "by all": 0o757, "by all, sticky": 0o1777}


@pytest.mark.parametrize("mode", OPEN.values(), ids=OPEN)
@pytest.mark.parametrize("which", ["folder", "file"])
def test_what_others_can_write_is_never_loaded_but_built_again(
    sources: Path, which: str, mode: int
) -> None:
    build.build(lambda: False)
    (path,) = _libraries(sources)
    planted = path.with_name("kernels-of-another-version.so")
    planted.write_bytes(b"")
    opened = path.parent if which == "folder" else path
    opened.chmod(mode)
    assert build.built() is None
    build.build(lambda: False)
    assert build.built() == path
    assert planted.exists() == (which == "file")
    assert [stat.S_IMODE(each.stat().st_mode) for each in (path.parent, path)] == [0o700, 0o700]


@pytest.mark.parametrize("umask", [0o077, 0o002, 0o000])
def test_what_is_built_is_ours_whatever_the_umask(sources: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        build.build(lambda: False)
    finally:
        os.umask(before)
    assert build.built() is not None


def test_a_folder_of_somebody_else_is_one_line(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.build(lambda: False)
    (path,) = _libraries(sources)
    owner = path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0:
        # What the administrator has put there is used, and so is what it has closed.
        assert build.built() == path
        os.chown(path.parent, 65534, 65534)
    assert build.built() is None
    with pytest.raises(build.NativeUnavailableError) as caught:
        build.load()
    assert f"others can write to {path.parent}; point EMBER_CACHE" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_damaged_library_that_cannot_be_repaired_is_one_line(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    build.build(lambda: False)
    (path,) = _libraries(sources)
    path.write_bytes(path.read_bytes()[:5000])
    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(build.NativeUnavailableError) as caught:
        build.load()
    assert f"{path} is damaged or not ours; cannot write to {path.parent}" in str(caught.value)
    assert "EMBER_CACHE" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_library_that_loads_no_more_is_built_again(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is whole, but, say, the system's own libraries are others now."""
    build.build(lambda: False)
    load, calls = ctypes.CDLL, []

    def refusing_once(path: str) -> ctypes.CDLL:
        calls.append(path)
        if len(calls) == 1:
            raise OSError("symbol not found")
        return load(path)

    monkeypatch.setattr("ctypes.CDLL", refusing_once)
    assert build.load().ember_start(1) is not None
    assert len(calls) == 2


def test_a_failing_compiler_says_why(sources: Path) -> None:
    (sources / "operations.cpp").write_text("#error not today\n")
    with pytest.raises(build.NativeUnavailableError, match=r"failed on the CPU kernels.*not today"):
        build.load()
    assert _libraries(sources) == []


def test_no_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.NativeUnavailableError, match=r"no-such-compiler.*apt install g"):
        build.load()


def test_an_unwritable_cache_is_one_clear_error(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = sources.parent / "file"
    blocked.write_text("")
    monkeypatch.setenv("EMBER_CACHE", str(blocked))
    with pytest.raises(build.NativeUnavailableError, match="cannot write to"):
        build.load()


def test_without_kernels_plain_mlx_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise build.NativeUnavailableError("no compiler here")

    monkeypatch.setattr("kvcache.config.library", refuse)
    assert Backend.AUTO.resolve() in (Backend.REFERENCE, Backend.GPU)
    with pytest.raises(build.NativeUnavailableError, match="no compiler here"):
        Backend.CPU.resolve()


@pytest.mark.skipif(not shutil.which(ARM_COMPILER), reason=f"needs {ARM_COMPILER}")
def test_compiles_for_arm_without_a_warning(tmp_path: Path) -> None:
    flags = [f for f in build._FLAGS if f not in (build._THIS_PROCESSOR, "-O3")]
    entry = ["-o", str(tmp_path / "arm.so"), str(build._ENTRY)]
    command = [ARM_COMPILER, *flags, "-O1", "-mcpu=cortex-a76", "-Werror", *entry]
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
