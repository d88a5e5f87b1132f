"""Files that others write into, cut or replace while they are open."""

import mmap
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.errors import GGUFError
from models.gguf.open_file import OpenFile

DATA = bytes(range(251)) * 97


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "model.gguf"
    found.write_bytes(DATA)
    _set_back(found)
    return found


def _set_back(path: Path) -> None:
    """As if it had lain there for long, so that a change has another time."""
    os.utime(path, ns=(10**18, 10**18))


def _other(path: Path, data: bytes = DATA) -> Path:
    other = path.with_name("other.gguf")
    other.write_bytes(data)
    return other


def _overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(3000)
        file.write(b"x")


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda path: os.truncate(path, 1000), "was cut to 1000 bytes while in use; get it"),
    "emptied": (lambda path: os.truncate(path, 0), "was cut to 0 bytes while in use; get it"),
    "a byte less": (lambda path: os.truncate(path, len(DATA) - 1), "was cut to"),
    "overwritten": (_overwrite, "was changed while in use; load it again"),
    "grown": (_append, "was changed while in use"),
    "copied over": (lambda path: shutil.copyfile(_other(path), path), "was changed while in use"),
    "copied over by one that is shorter": (
        lambda path: shutil.copyfile(_other(path, b"x" * 9), path),
        "was cut to 9 bytes",
    ),
    "copied over with its time": (
        lambda path: shutil.copy2(_other(path, bytes(len(DATA))), path),
        "was changed while in use",
    ),
}
REPLACED: dict[str, Callable[[Path], object]] = {
    "replaced": lambda path: _other(path, b"x").replace(path),
    "moved": lambda path: path.rename(path.with_name("moved.gguf")),
    "removed": lambda path: path.unlink(),
    "linked": lambda path: path.with_name("link.gguf").hardlink_to(path),
    "made read-only": lambda path: path.chmod(0o400),
    "read": lambda path: path.read_bytes(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_who_writes_into_it_is_noticed(path: Path, change: str) -> None:
    file = OpenFile(path)
    file.check()
    make, message = CHANGES[change]
    make(path)
    for _ in range(2):
        with pytest.raises(GGUFError) as caught:
            file.check()
        assert str(caught.value).startswith(f"{path}: {message}")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", REPLACED)
def test_the_open_file_stays_whatever_becomes_of_its_name(path: Path, change: str) -> None:
    file = OpenFile(path)
    REPLACED[change](path)
    file.check()
    got = bytearray(len(DATA))
    file.read(memoryview(got), 0)
    assert got == DATA


def test_what_is_read_is_what_lies_there(path: Path) -> None:
    got = bytearray(1009)
    OpenFile(path).read(memoryview(got), 503)
    assert got == DATA[503:1512]


def test_a_read_beyond_a_cut_is_refused(path: Path) -> None:
    file = OpenFile(path)
    os.truncate(path, 1000)
    file.read(memoryview(bytearray(400)), 600)
    with pytest.raises(GGUFError, match="was cut to 1000 bytes while in use"):
        file.read(memoryview(bytearray(401)), 600)


class _Damaged:
    is_damaged = True

    def __init__(self, _descriptor: int, size: int) -> None:
        self.data = np.full(size, 7, np.uint8)


def test_bytes_that_could_not_be_had_are_told_of(path: Path) -> None:
    file = OpenFile(path)
    assert file.data.tobytes() == DATA
    file.map_by(_Damaged)
    assert (file.data == 7).all()
    with pytest.raises(GGUFError, match="a part of it could not be read; its disk may be failing"):
        file.check()
    os.truncate(path, 1000)
    with pytest.raises(GGUFError, match="was cut to 1000 bytes"):
        file.check()


def test_a_file_that_cannot_be_mapped_is_refused(path: Path) -> None:
    def fail(_descriptor: int, _size: int) -> _Damaged:
        raise OSError(12, "Cannot allocate memory")

    with pytest.raises(GGUFError, match=r"model\.gguf: cannot be mapped: Cannot allocate memory"):
        OpenFile(path).map_by(fail)


def test_a_file_that_is_cut_before_it_is_mapped_is_told_as_that(path: Path) -> None:
    file = OpenFile(path)
    os.truncate(path, 1000)
    with pytest.raises(GGUFError, match="was cut to 1000 bytes while in use; get it again"):
        _ = file.data


def test_what_is_only_read_is_not_mapped(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a program may have less of addresses than the file has bytes."""

    def fail(*_: object, **_more: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", fail)
    file, got = OpenFile(path), bytearray(len(DATA))
    file.read(memoryview(got), 0)
    file.check()
    assert got == DATA
    with pytest.raises(GGUFError, match=r"model\.gguf: cannot be mapped: Cannot allocate memory"):
        _ = file.data


def test_its_descriptor_is_closed_with_it(path: Path) -> None:
    file = OpenFile(path)
    descriptor = file.descriptor
    os.fstat(descriptor)
    del file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def _pipe(folder: Path) -> Path:
    path = folder / "pipe"
    os.mkfifo(path)
    return path


NO_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "pipe": (_pipe, "is a directory or device"),
    "folder": (lambda folder: folder, "is a directory or device"),
    "device that ends": (lambda _: Path("/dev/null"), "is a directory or device"),
    "device without end": (lambda _: Path("/dev/zero"), "is a directory or device"),
    "nothing": (lambda folder: folder / "nothing", "cannot be read: No such file"),
    "below a file": (lambda _: Path(__file__) / "model.gguf", "cannot be read: Not a directory"),
}


@pytest.mark.parametrize("case", NO_FILES)
def test_what_is_no_file_is_refused(tmp_path: Path, case: str) -> None:
    make, message = NO_FILES[case]
    path = make(tmp_path)
    with pytest.raises(GGUFError) as caught:
        OpenFile(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_file_of_others_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(GGUFError, match=r"model\.gguf: cannot be read: Permission denied"):
        OpenFile(path)


def test_a_disk_that_fails_is_told_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = OpenFile(path)

    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    looks: dict[str, Callable[[], object]] = {
        "preadv": lambda: file.read(memoryview(bytearray(9)), 0),
        "fstat": file.check,
    }
    for name, look in looks.items():
        monkeypatch.setattr(os, name, fail)
        with pytest.raises(GGUFError, match=r"model\.gguf: cannot be read: Input/output error"):
            look()
        monkeypatch.undo()
