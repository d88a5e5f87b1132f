import errno
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from models.errors import FetchError
from models.finding.hub import hub_folder
from models.finding.store import (
    check_file,
    installed,
    keep,
    models_folder,
    staging_folder,
    writing_to,
)
from tests.models.samples import CONTENT, ENTRY, OTHER_COMMIT, SHA256, put, put_hub


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_folder_follows_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBER_CACHE", "~/elsewhere")
    assert models_folder() == home / "elsewhere" / "models"
    monkeypatch.delenv("EMBER_CACHE")
    assert models_folder().parts[-2:] == ("ember", "models")
    assert models_folder().is_relative_to(home)


def test_installed_prefers_embers_own_copy(home: Path) -> None:
    assert installed(ENTRY) is None
    shared = put_hub(hub_folder(), ENTRY.hub)
    assert installed(ENTRY) == shared
    own = put(models_folder() / ENTRY.hub.file_name)
    assert installed(ENTRY) == own


def test_installed_finds_the_file_at_another_revision(home: Path) -> None:
    pinned = replace(ENTRY, hub=replace(ENTRY.hub, revision=OTHER_COMMIT))
    assert installed(pinned) is None
    assert put_hub(hub_folder(), ENTRY.hub) == installed(pinned)


def test_a_file_of_another_size_is_not_the_entry(home: Path) -> None:
    put(models_folder() / ENTRY.hub.file_name, CONTENT[:-1])
    put_hub(hub_folder(), ENTRY.hub, content=CONTENT + b"!")
    assert installed(ENTRY) is None


def test_a_file_of_no_known_size_is_told_by_its_name(home: Path) -> None:
    unknown = replace(ENTRY, size=None, sha256=None)
    assert installed(unknown) is None
    other = put_hub(hub_folder(), ENTRY.hub, content=CONTENT + b"!")
    assert installed(unknown) == other
    assert installed(ENTRY) is None


def test_kept_file_stays_and_staging_goes(home: Path) -> None:
    with staging_folder(1) as stage:
        target = keep(put(stage / "kept.gguf"))
        put(stage / "deep" / "left over")
        assert not (stage / "kept.gguf").exists()
    assert target.read_bytes() == CONTENT
    assert list(models_folder().iterdir()) == [target]


def test_staging_goes_when_interrupted(home: Path) -> None:
    def interrupted() -> None:
        with staging_folder(1) as stage:
            put(stage / "half.gguf")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(models_folder().iterdir()) == []


def test_only_old_leftovers_are_swept(home: Path) -> None:
    old, young = models_folder() / ".fetch-old", models_folder() / ".fetch-young"
    for folder in (old, young):
        put(folder / "part.whl")
    two_days_ago = time.time() - 2 * 24 * 60 * 60
    os.utime(old, (two_days_ago, two_days_ago))
    with staging_folder(1):
        assert not old.exists()
        assert young.exists()


def test_a_full_disk_is_seen_before_the_download(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(total=9, used=2, free=7_000_000))
    with (
        pytest.raises(FetchError, match=r"7 of 11 MB free.*EMBER_CACHE"),
        staging_folder(11 * 10**6),
    ):
        pytest.fail("staged without room")
    assert list(models_folder().iterdir()) == []


def test_a_cache_that_cannot_be_made_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBER_CACHE", str(put(home / "a file")))
    with pytest.raises(FetchError, match=r"cannot write to .*set EMBER_CACHE"), staging_folder(1):
        pytest.fail("staged inside a file")


def test_a_disk_that_fills_up_says_so(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="no space left"), writing_to(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_check_file_takes_the_right_bytes_only(tmp_path: Path) -> None:
    check_file(put(tmp_path / "right"), ENTRY)
    with pytest.raises(FetchError, match=f"got {len(CONTENT) - 1} bytes, expected {len(CONTENT)}"):
        check_file(put(tmp_path / "short", CONTENT[:-1]), ENTRY)
    with pytest.raises(FetchError, match=f"expected {SHA256[:16]}"):
        check_file(put(tmp_path / "changed", CONTENT[::-1]), ENTRY)
