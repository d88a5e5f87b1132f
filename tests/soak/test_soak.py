"""A minute of what `python -m tests.soak` does for half an hour; its pace is not a test's."""

from dataclasses import replace
from pathlib import Path

from tests.app.conftest import write_tiny
from tests.soak.answering import WINDOW, Soaked, soak

_ROUNDS = 45


def test_memory_stays_as_it_was(tmp_path: Path) -> None:
    found = soak(write_tiny(tmp_path / "tiny.gguf"), seconds=0, rounds=_ROUNDS)
    assert not found.has_grown, str(found)
    assert found.tokens > 50 * WINDOW


def test_what_grows_is_seen() -> None:
    flat = Soaked(tokens=9, rounds=3, pace=1.0, grown=1 << 20, cache=(5, 5))
    assert not flat.has_grown
    assert replace(flat, grown=7 << 20).has_grown
    assert replace(flat, cache=(5, 6)).has_grown
