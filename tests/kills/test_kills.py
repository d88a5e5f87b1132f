"""A few kills of what ends soon; `python -m tests.kills` tries all, and more often."""

from pathlib import Path
from random import Random

import pytest

from tests.kills.killing import Killing
from tests.kills.stages import place, strays

_KILLS = 3


@pytest.mark.parametrize("name", ["chat", "export", "import", "pull"])
def test_whatever_ends_a_program_nothing_is_lost_or_left(name: str, tmp_path: Path) -> None:
    with place(tmp_path) as at:
        killing = Killing(at=at, name=name)
        killing.run(_KILLS, Random(name))
    assert killing.killed.total() == _KILLS
    assert name != "chat" or killing.confirmed


def test_what_was_begun_is_seen(tmp_path: Path) -> None:
    with place(tmp_path) as at:
        assert strays(at) == []
        begun = at.folder / ".settings.toml-abcd1234"
        begun.touch()
        assert strays(at) == [begun]
