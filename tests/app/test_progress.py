"""Bars appear where there is something to wait for."""

import io
import sys

import pytest

from app import progress


class _Screen(io.StringIO):
    """A terminal of 80 columns."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("seconds", "shown"), [(0.0, False), (0.29, False), (0.31, True)])
def test_a_bar_over_bytes_waits_until_somebody_does(
    seconds: float, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen, now = _Screen(), [100.0]
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with progress.byte_bar("loading") as report:
        report(1, 7)
        now[0] += seconds
        report(3, 7)
    assert ("loading" in screen.getvalue()) == shown


def test_a_bar_over_steps_appears_with_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with progress.step_bar("compiling"):
        pass
    assert not screen.getvalue()
    with progress.step_bar("compiling") as report:
        report(1, 3)
    assert "compiling" in screen.getvalue()
