"""Chats that rest and wake, for tests: engines over tiny models, and what they answer."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.engine import Engine, Request
from app.events import Completion
from app.wake.folder import PieceFolder
from app.wake.waking import Waking
from kvcache import Backend, CacheConfig, HotDtype
from models.loader import LoadedModel
from tests.app.answers import finish

WORDS = [3 + 7 * at % 311 for at in range(300)]
CONFIG = CacheConfig(block=8, hot=16, sinks=3, hot_dtype=HotDtype.F32, keys="hkivi5", values="q6")


def engine_of(loaded: LoadedModel, backend: Backend, **changes: Any) -> Engine:
    """A fresh engine."""
    return Engine(loaded, replace(CONFIG, backend=backend, **changes))


def answer(engine: Engine, prompt: Sequence[int], tokens: int = 5) -> Completion:
    """What it answers, greedily."""
    return finish(engine.generate(Request(prompt=prompt, max_tokens=tokens)))


def rest(engine: Engine, folder: Path, most: int = 1 << 30) -> list[str]:
    """Keep what an engine holds, all of it; returns what there is to be said."""
    waking = Waking(PieceFolder(folder, most))
    list(waking.rest(engine))
    waking.close(60)
    return list(waking.notes())


def wake(engine: Engine, folder: Path, prompt: Sequence[int]) -> int:
    """Have an engine hold what was kept of a prompt; how many tokens of it."""
    waking = Waking(PieceFolder(folder))
    found = waking.wake(engine, prompt)
    waking.close(60)
    return found
