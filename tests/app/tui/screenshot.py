"""Makes README's picture: `python -m tests.app.tui.screenshot [FILE]`.

Holds a real conversation with the default model, without a terminal, and writes
the screen as SVG.
"""

import argparse
import asyncio
import re
from pathlib import Path

from textual.pilot import Pilot

from app.chat.settings import Settings
from app.chat.state import Draft, Phase
from app.service.live_service import LiveService
from app.tui.app import ChatApp
from kvcache import CacheConfig, EmberError
from models.finding.catalogue import DEFAULT_NAME
from models.finding.fetch import fetch

_SIZE = 120, 36
_QUESTIONS = (
    "What is the capital of France?",
    "Write a short python function that adds two numbers.",
    "Give me three tips for writing clear code, as a list.",
)
_POLL = 0.1
_STEPS = 1200


async def converse(app: ChatApp) -> str:
    """Ask all questions; returns the screen as SVG."""
    async with app.run_test(size=_SIZE) as pilot:
        await _until_ready(app, pilot)
        for question in _QUESTIONS:
            await _until_ready(app, pilot)
            app.chat.ask(Draft(text=question))
        await _until_ready(app, pilot)
        await pilot.pause(1)
        return app.export_screenshot(title="ember")


async def _until_ready(app: ChatApp, pilot: Pilot[None]) -> None:
    for _ in range(_STEPS):
        if app.chat.phase is Phase.READY:
            return
        if app.chat.problem is not None:
            raise EmberError(f"{app.chat.problem.title}: {app.chat.problem.cause}")
        await pilot.pause(_POLL)
    raise EmberError("the model did not answer in time")


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=Path("assets/chat.svg"))
    path: Path = parser.parse_args().file
    fetch(DEFAULT_NAME)
    # Small, so that a short conversation shows every tier.
    service = LiveService(CacheConfig(max_tokens=256, hot=32, block=32))
    try:
        app = ChatApp(service, model=DEFAULT_NAME, settings=Settings(max_tokens=200))
        svg = asyncio.run(converse(app))
    finally:
        service.close()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Fonts from elsewhere are not fetched where pictures are shown.
    path.write_text(re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
