import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import private
from tests.full_disk import full_disk


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    """A user who lets everybody read everything."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_made_is_the_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "shared" / "ember"
    private.make_folder(folder)
    private.make_folder(folder)
    private.touch(folder / "a")
    private.write(folder / "b", "text")
    assert [mode(each) for each in (folder, folder / "a", folder / "b")] == [0o700, 0o600, 0o600]
    assert mode(folder.parent) == 0o777


def test_touching_keeps_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("kept")
    private.touch(path)
    assert path.read_text() == "kept"


@pytest.mark.parametrize(
    ("before", "after"), [(0o644, 0o600), (0o777, 0o700), (0o600, 0o600), (0o400, 0o400)]
)
def test_what_others_may_do_is_taken_away_and_nothing_given(
    tmp_path: Path, before: int, after: int
) -> None:
    path = tmp_path / "a"
    path.touch()
    path.chmod(before)
    assert private.narrow([path, tmp_path / "none"]) == []
    assert mode(path) == after


def test_what_cannot_be_narrowed_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_path: Path, _mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    path = tmp_path / "a"
    path.touch()
    path.chmod(0o644)
    monkeypatch.setattr(Path, "chmod", refused)
    assert private.narrow([path]) == [f"others may be able to read {path}: Operation not permitted"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with full_disk(7), pytest.raises(OSError, match="File too large"):
        private.write(path, "new " * 99)
    assert path.read_text() == "old"
    assert list(tmp_path.glob(".a*")) == []


def test_damaged_files_get_names_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    for number in (1, 2, 3):
        path.write_text(str(number))
        assert private.set_aside(path) == tmp_path / f"a.db.damaged-{number}"
    assert (tmp_path / "a.db.damaged-2").read_text() == "2"
