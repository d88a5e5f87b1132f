"""Copying from any screen, and saying where the text went."""

import asyncio
from functools import partial
from typing import Any

from textual.app import App
from textual.screen import Screen

from app.tui.terminal import clipboard


def copy(screen: Screen[Any], text: str, what: str) -> None:
    """Copy a text beside whatever else goes on; say so once it is done."""

    async def run() -> None:
        by_terminal = partial(App.copy_to_clipboard, screen.app)
        known = text.encode("utf-8", "replace").decode()
        copied = await asyncio.to_thread(clipboard.copy, known, by_terminal)
        screen.notify(copied.value.format(what), markup=False)

    screen.run_worker(run(), exit_on_error=False)
