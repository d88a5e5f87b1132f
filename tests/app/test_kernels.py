"""Compiling the kernels where it can be seen: the cache's and the network's, each once."""

from pathlib import Path

import pytest

from app.kernels import compile_kernels, must_compile
from kvcache import Backend
from kvcache.native import build, library
from kvcache.native.build import BuildStoppedError, Sources
from models.native import kernels


@pytest.fixture
def wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Sources]:
    """Two libraries of one line, and an empty cache, in a process that has tried neither."""
    monkeypatch.setenv("EMBER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(library, "is_tried", lambda: False)
    found: list[Sources] = []
    for module in (library, kernels):
        entry = tmp_path / module.__name__ / "entry.cpp"
        entry.parent.mkdir()
        entry.write_text(f'extern "C" int one() {{ return {len(found)}; }}\n')
        found.append(Sources(entry=entry))
        monkeypatch.setattr(module, "SOURCES", found[-1])
    return found


def test_both_libraries_are_compiled(wanted: list[Sources]) -> None:
    assert must_compile(Backend.CPU)
    compile_kernels(lambda: False)
    assert [build.load(each).one() for each in wanted] == [0, 1]
    assert not must_compile(Backend.CPU)


@pytest.mark.parametrize("which", [0, 1])
def test_only_what_is_missing_is_compiled(wanted: list[Sources], which: int) -> None:
    compile_kernels(lambda: False)
    gone, kept = build.built(wanted[which]), build.built(wanted[1 - which])
    assert gone is not None
    assert kept is not None
    gone.unlink()
    before = kept.stat().st_mtime_ns
    assert must_compile(Backend.AUTO)
    compile_kernels(lambda: False)
    assert build.built(wanted[which]) == gone
    assert kept.stat().st_mtime_ns == before


def test_whoever_waits_for_them_can_stop(
    wanted: list[Sources], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] || sleep 600\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(BuildStoppedError):
        compile_kernels(lambda: True)
    assert must_compile(Backend.CPU)


def test_other_backends_and_a_missing_compiler_want_none(
    wanted: list[Sources], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not must_compile(Backend.REFERENCE)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not must_compile(Backend.CPU)
    compile_kernels(lambda: False)
