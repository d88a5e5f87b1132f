"""A minute of what `python -m tests.soak` does for half an hour; its pace is not a test's."""

from pathlib import Path

from tests.app.conftest import write_tiny
from tests.soak.answering import WINDOW, soak

_ROUNDS = 45


def test_memory_and_numbers_stay_as_they_were(tmp_path: Path) -> None:
    found = soak(write_tiny(tmp_path / "tiny.gguf"), seconds=0, rounds=_ROUNDS)
    assert found.finite
    assert not found.has_grown, str(found)
    assert found.tokens > 50 * WINDOW
