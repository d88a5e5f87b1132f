import asyncio
import os
import signal
import sys

import pytest
from textual.app import App

from app.tui.terminal.driver import ForgivingDriver


def test_a_signal_to_go_on_does_not_take_a_terminal_that_was_given_back(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    master, slave = os.openpty()

    async def leave() -> None:
        driver = ForgivingDriver(App[None]())
        driver.start_application_mode()
        driver.stop_application_mode()
        os.kill(os.getpid(), signal.SIGCONT)
        for _ in range(9):  # it is heard
            await asyncio.sleep(0)
        driver.disable_input()
        driver.close()

    with os.fdopen(slave) as terminal:
        monkeypatch.setattr(sys, "__stdin__", terminal)
        asyncio.run(leave())
    os.close(master)
    written = capfd.readouterr().err
    for mode in ("?1049", "?1004", "?2004"):
        assert written.rindex(f"\x1b[{mode}l") > written.rindex(f"\x1b[{mode}h")
