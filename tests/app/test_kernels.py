"""Compiling the kernels where it can be seen: the cache's and the network's, each once."""

import io
import sys
import threading
from pathlib import Path

import pytest

from app.kernels import (
    COMPILING,
    compile_kernels,
    compile_later,
    compiling,
    only_reference,
    wanted,
    wanted_later,
)
from kvcache import Backend, CacheConfig, EmberError
from kvcache.errors import BuildStoppedError, NativeUnavailableError
from kvcache.native import build, library
from kvcache.native.build import Sources
from kvcache.native.compilers import find_compiler
from kvcache.native.kept import kernels_folder
from models.gguf.tensor_types import TensorType
from models.loader import bytes_by
from models.native import kernels
from models.native.kernels import missing
from tests.app.conftest import Ember, write_tiny
from tests.lasting_compiler import words_of_a_compiler
from tests.patience import wait_until

ROOT = Path(build.__file__).parents[2]


@pytest.fixture
def both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Sources]:
    """Two libraries of one line, and an empty cache, in a process that has tried neither."""
    monkeypatch.setenv("EMBER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(library, "is_refused", lambda: False)
    found: list[Sources] = []
    for module in (library, kernels):
        entry = tmp_path / module.__name__ / "entry.cpp"
        entry.parent.mkdir()
        entry.write_text(f'extern "C" int one() {{ return {len(found)}; }}\n')
        found.append(Sources(entry=entry))
        monkeypatch.setattr(module, "SOURCES", found[-1])
    return found


def test_both_libraries_are_compiled(both: list[Sources]) -> None:
    assert missing(Backend.CPU)
    compile_kernels(missing(Backend.CPU), lambda: False)
    assert [build.load(each).one() for each in both] == [0, 1]
    assert not missing(Backend.CPU)


@pytest.mark.parametrize("which", [0, 1])
def test_only_what_is_missing_is_compiled(both: list[Sources], which: int) -> None:
    compile_kernels(missing(Backend.CPU), lambda: False)
    gone, kept = build.built(both[which]), build.built(both[1 - which])
    assert gone is not None
    assert kept is not None
    gone.unlink()
    before = kept.stat().st_mtime_ns
    assert missing(Backend.AUTO)
    compile_kernels(missing(Backend.CPU), lambda: False)
    assert build.built(both[which]) == gone
    assert kept.stat().st_mtime_ns == before


def test_whoever_waits_for_them_can_stop(
    both: list[Sources], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] || sleep 600\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(BuildStoppedError):
        compile_kernels(missing(Backend.CPU), lambda: True)
    assert missing(Backend.CPU)


def test_other_backends_and_a_missing_compiler_want_none(
    both: list[Sources], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not missing(Backend.REFERENCE)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not missing(Backend.CPU)
    compile_kernels(missing(Backend.CPU), lambda: False)


def test_what_a_model_needs_is_compiled_and_no_more(both: list[Sources], tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "model.gguf", TensorType.Q4_1)
    assert set(wanted(Backend.CPU, str(model))) == {*both, kernels.products(TensorType.Q4_1)}
    assert wanted(Backend.CPU, "no-such-model") == both
    compile_kernels(both, lambda: False)
    # The load says what types there are, once it has read the header.
    assert wanted(Backend.CPU, str(model)) == []


def test_what_encodes_is_compiled_beside_the_first_answer(both: list[Sources]) -> None:
    codings = {library.ALL_CODES, library.codes(3), library.codes(2, trellis=True)}
    config = CacheConfig(keys="hkivi3", values="trellis2", backend=Backend.CPU)
    assert set(wanted_later(config)) == codings
    assert not codings & set(wanted(Backend.CPU))
    compile_later(config)
    wait_until(lambda: not wanted_later(config), 30)


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A compiler that waits: what tells that it runs, and what lets it go on once it is there."""
    started, go_on, compiler = (tmp_path / each for each in ("started", "go on", "compiler"))
    real = find_compiler()
    compiler.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] || {{ touch "{started}"; '
        f'while [ ! -e "{go_on}" ]; do sleep 0.02; done; }}\nexec {real} "$@"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    return started, go_on


def test_kernels_compile_while_something_else_is_done(
    both: list[Sources], slow: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    started, go_on = slow
    with compiling(missing(Backend.CPU)):
        wait_until(started.exists, 30)
        go_on.touch()
    assert missing(Backend.CPU) == []
    with compiling(missing(Backend.CPU)):  # nothing is left to wait for
        pass
    assert capsys.readouterr().err in ("", f"ember: {COMPILING}\n")


def test_what_fails_meanwhile_stops_the_compiler(
    both: list[Sources], slow: tuple[Path, Path]
) -> None:
    started, _ = slow

    def fail() -> None:
        with compiling(missing(Backend.CPU)):
            wait_until(started.exists, 30)
            raise EmberError("no network")

    with pytest.raises(EmberError, match="no network"):
        fail()
    assert missing(Backend.CPU) == both
    assert list(kernels_folder().iterdir()) == []


def test_a_load_from_python_compiles_both_at_once(
    both: list[Sources], monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[list[Sources]] = []

    def refuse() -> None:
        raise NativeUnavailableError("not today")

    monkeypatch.setattr("models.loader.build", lambda each: built.append(list(each)))
    monkeypatch.setattr("kvcache.config.library", refuse)
    bytes_by(Backend.AUTO)
    assert built == [both]


def test_no_compiler_outlives_a_program_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBER_CACHE", str(tmp_path / "cache"))
    program = (
        "from app import interrupt, kernels",
        "from kvcache import Backend, CacheConfig",
        "kernels.compile_later(CacheConfig(backend=Backend.CPU))",
        "WAIT",
        "interrupt.end(0)",
    )
    assert words_of_a_compiler(tmp_path, monkeypatch, *program) == ""
    assert list(kernels_folder().iterdir()) == []


@pytest.mark.parametrize(
    ("command", "said"),
    [(("run", "-p", "hi", "--max-tokens", 1), ""), (("chat",), "hi\n")],
    ids=["run", "chat"],
)
def test_a_program_without_a_screen_ends_when_what_encodes_is_compiled(
    command: tuple[object, ...],
    said: str,
    ember: Ember,
    tiny_path: Path,
    slow: tuple[Path, Path],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next one would begin anew, and so would all that are as short."""
    source, (started, go_on) = home / "entry.cpp", slow
    source.write_text('extern "C" int one() { return 1; }\n')
    lasts = Sources(entry=source)
    monkeypatch.setenv("EMBER_CACHE", str(home / "cache"))
    monkeypatch.setattr("app.kernels.wanted_later", lambda config: [lasts])
    monkeypatch.setattr(sys, "stdin", io.StringIO(said))

    def wait_for(thread: threading.Thread) -> None:
        wait_until(started.exists, 30)
        go_on.touch()
        thread.join()

    monkeypatch.setattr("app.kernels._wait_for", wait_for)
    result = ember(*command, "-m", tiny_path, "--backend", "reference")
    assert result.code == 0, result.err
    assert build.built(lasts) is not None


@pytest.mark.parametrize(
    ("backend", "compiler", "is_only"),
    [
        (Backend.REFERENCE, None, True),
        (Backend.CPU, "no-such-compiler", False),
        (Backend.AUTO, "no-such-compiler", True),
        (Backend.AUTO, None, False),
    ],
)
def test_where_nothing_compiles_plain_mlx_is_all_there_is(
    backend: Backend,
    compiler: str | None,
    is_only: bool,
    both: list[Sources],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if compiler is not None:
        monkeypatch.setenv("CXX", compiler)
    assert only_reference(backend) is is_only
