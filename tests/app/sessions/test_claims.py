import fcntl
from pathlib import Path

import pytest

from app.sessions.claims import Claims


def test_a_chat_is_had_by_one_until_it_is_released(tmp_path: Path) -> None:
    one, other = Claims(tmp_path / "open"), Claims(tmp_path / "open")
    assert one.take(7)
    assert one.take(7)
    assert not other.take(7)
    assert other.take(8)
    one.release(7)
    assert other.take(7)
    assert not one.take(7)
    other.close()
    assert one.take(7)
    assert one.take(8)
    one.close()
    assert not list((tmp_path / "open").iterdir())


def test_a_chat_that_is_released_while_it_is_taken_is_had_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = Claims(tmp_path), Claims(tmp_path)
    assert one.take(7)
    flock = fcntl.flock

    def late(handle: int, how: int) -> None:
        one.release(7)
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    assert other.take(7)
    monkeypatch.undo()
    assert not one.take(7)
    other.close()
    assert not list(tmp_path.iterdir())
