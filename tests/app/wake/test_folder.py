"""The folder of pieces: its bound, who goes first, and what is swept."""

import os
import time
from pathlib import Path

import pytest

from app.chat.settings import Settings
from app.commands import chat
from app.wake.folder import DEFAULT_BYTES, PieceFolder, default_folder
from kvcache import EmberError
from tests.app.conftest import Ember


def _write(folder: PieceFolder, name: str, size: int, age: float = 0.0) -> None:
    with folder.writing(name) as file:
        file.write(bytes(size))
    at = time.time() - age
    os.utime(folder.path / f"{name}.safetensors", (at, at))


def test_it_lies_in_embers_cache(home: Path) -> None:
    assert default_folder() == home / ".cache" / "ember" / "kept"
    assert PieceFolder(default_folder()).pieces() == {}
    assert PieceFolder(default_folder()).nbytes == 0


def test_a_piece_is_there_when_it_is_whole(tmp_path: Path) -> None:
    folder = PieceFolder(tmp_path / "deep" / "kept")
    with folder.writing("a.b.rest") as file:
        file.write(b"half")
        file.flush()
        assert folder.pieces() == {}
        assert len(list(folder.path.iterdir())) == 1
    assert folder.read("a.b.rest") == b"half"
    assert (folder.read("a.b.rest", 2), folder.read("a.b.rest", 9, at=1)) == (b"ha", b"alf")
    with pytest.raises(ZeroDivisionError), folder.writing("a.c.rest") as file:
        file.write(bytes(1 // 0))
    assert [path.name for path in folder.path.iterdir()] == ["a.b.rest.safetensors"]
    assert folder.read("a.c.rest") is None


def test_the_least_used_go_first_and_before_them_what_nobody_needs(tmp_path: Path) -> None:
    folder = PieceFolder(tmp_path, most=500)
    for at, name in enumerate("abcdefg"):
        _write(folder, name, 100, age=1000 - at)
    folder.bound(wanted=["a", "b", "c"])
    assert sorted(folder.pieces()) == ["a", "b", "c", "f", "g"]
    folder.use(["b", "a"])
    folder.most = 300
    folder.bound(wanted=["a", "b", "c", "f", "g"])
    # Of those that are used together, the first is the last to go.
    assert sorted(folder.pieces()) == ["a", "b", "g"]
    folder.most = 150
    folder.bound(wanted=["a", "b", "g"])
    assert sorted(folder.pieces()) == ["b"]


def test_no_more_is_read_than_all_may_have(tmp_path: Path) -> None:
    folder = PieceFolder(tmp_path, most=64)
    _write(folder, "a", 1000)
    assert folder.read("a") == bytes(64)


def test_what_a_killed_program_left_is_swept_once_it_is_old(tmp_path: Path) -> None:
    folder = PieceFolder(tmp_path)
    young, old = tmp_path / ".piece-young", tmp_path / ".piece-old"
    young.touch()
    old.touch()
    os.utime(old, (time.time() - 4000,) * 2)
    folder.bound()
    assert (young.exists(), old.exists()) == (True, False)


def test_all_of_it_can_be_removed_and_nothing_else(tmp_path: Path) -> None:
    folder = PieceFolder(tmp_path)
    _write(folder, "a", 70)
    _write(folder, "b", 30)
    (tmp_path / "mine.txt").write_text("mine")
    assert folder.clear() == 100
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.usefixtures("home")
def test_kept_chats_are_removed_by_a_command(ember: Ember) -> None:
    folder = PieceFolder(default_folder())
    _write(folder, "a", 1_500_000)
    assert ember("rm", "--kept").out == "removed the kept chats: 1.5 MB freed\n"
    assert folder.pieces() == {}
    assert ember("rm").code == 2
    assert ember("rm", "smollm2", "--kept").code == 2


@pytest.mark.parametrize("size", ["-1", "much", "1e9", ""])
@pytest.mark.parametrize("flag", ["--cache-store", "--sleep"])
def test_what_is_no_size_is_bad_usage(ember: Ember, flag: str, size: str) -> None:
    refused = ember("chat", flag, size)
    assert refused.code == 2
    assert "expected a number of bytes such as 64MiB" in refused.err


def test_how_much_is_kept_is_a_setting() -> None:
    sizes = {"2GiB": 2 << 30, "0": 0, "500MB": 500_000_000}
    assert {text: Settings(cache_store=text).cache_store_bytes() for text in sizes} == sizes
    assert Settings().cache_store_bytes() == DEFAULT_BYTES
    with pytest.raises(EmberError, match="expected a number of bytes"):
        Settings().with_text("cache_store", "much")


def test_a_chat_without_a_store_keeps_nothing() -> None:
    assert chat._waking(Settings(cache_store="0"), None) is None
    waking = chat._waking(Settings(cache_store="1MiB"), "0")
    assert waking is not None
    assert (waking._folder.most, waking._folder.asleep) == (1 << 20, 0)
    waking.close(60)
