"""A minute of what `python -m tests.soak` does for long; its pace is not a test's."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from tests.app.conftest import write_tiny
from tests.soak.answering import WINDOW, Soaked, soak
from tests.soak.mixed_load import Loaded, mixed_load
from tests.soak.talking import Talking

_ROUNDS, _SECONDS, _CHATS = 45, 20, 12


def test_memory_stays_as_it_was(tmp_path: Path) -> None:
    found = soak(write_tiny(tmp_path / "tiny.gguf"), seconds=0, rounds=_ROUNDS)
    assert not found.has_grown, str(found)
    assert found.tokens > 50 * WINDOW


def test_what_grows_or_slows_is_seen() -> None:
    flat = Soaked(tokens=9, rounds=300, pace=1.04, grown=1 << 20, cache=(5, 5))
    assert not flat.has_grown
    assert not flat.has_slowed
    assert replace(flat, pace=1.06).has_slowed
    assert not replace(flat, pace=1.06, rounds=60).has_slowed
    assert replace(flat, grown=7 << 20).has_grown
    assert replace(flat, cache=(5, 6)).has_grown


def test_clients_are_answered_as_if_alone_and_told_of_the_end(tmp_path: Path) -> None:
    found = mixed_load(tmp_path, seconds=_SECONDS)
    assert not found.wrong, found.wrong[:3]
    assert not found.faults, f"{found}: {found.said}"
    assert {"streamed", "whole", "left", "refused"} <= set(found.done)


def test_what_a_server_does_wrong_is_seen() -> None:
    sound = Loaded(done=Counter(whole=1), wrong=[], grown=0, told=8, code=143, said="")
    assert (sound.faults, sound.checked) == (0, 1)
    for change in ({"wrong": ["x"]}, {"grown": 99 << 20}, {"told": 7}, {"code": 1}):
        assert replace(sound, **change).faults == 1
    assert replace(sound, said="Traceback").faults == 1


def test_chats_say_save_and_hold_what_was_said(tmp_path: Path) -> None:
    talking = Talking(tmp_path, seed=1)
    talking.run(_CHATS)
    assert talking.chats == _CHATS
    assert talking.walked.total() > 5 * _CHATS
