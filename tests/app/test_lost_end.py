"""Who ends a paste whose own end never came."""

import time

import pytest

from app.lost_end import LostEnd

KEYS = ["\x03", "\x1b[99;5u", "\x1b[99;5:1u"]


@pytest.mark.parametrize(
    ("text", "after", "pasting", "ends"),
    [
        *((key, 1.1, True, True) for key in KEYS),
        ("\x03", 0.9, True, False),  # too soon for a hand
        ("\x03", 1.1, False, False),
        ("\x1b", 1.1, True, False),  # perhaps of the end's mark, torn by a slow line
        ("\x1b[A", 1.1, True, False),
        ("\x03 and more", 1.1, True, False),
        ("", 1.1, True, False),
    ],
)
def test_a_key_by_itself_after_a_while_ends_it(
    text: str, after: float, pasting: bool, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    lost_end = LostEnd()
    assert not lost_end.is_ended_by("\x1b[200~one", pasting=False)
    now = after
    assert lost_end.is_ended_by(text, pasting=pasting) is ends


def test_who_presses_it_again_and_again_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((0.0, 0.0, 0.4, 0.8, 1.2))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    lost_end = LostEnd()
    heard = [lost_end.is_ended_by("\x03", pasting=True) for _ in range(4)]
    assert heard == [False, False, False, True]
