"""What a load tells while it runs, and of the model at its end."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.chat_tokens import ChatTokens
from app.engine import Engine
from app.job import Job
from app.service.contract import LoadEvent, ModelInfo
from app.session import COUNTING
from kvcache.errors import BuildStoppedError
from models.errors import RenderStoppedError
from models.finding.progress import Progress
from models.loader import OnProgress


class CancelledError(Exception):
    """Raised inside a load or a download that the user stopped."""


def until_stopped(events: Iterator[LoadEvent]) -> Iterator[LoadEvent]:
    """Events of a load, or of a change, up to where the user stops it."""
    try:
        yield from events
    except (CancelledError, BuildStoppedError, RenderStoppedError):
        return


def doing(label: str) -> Progress:
    """What is done, where nobody knows how much of it there is."""
    return Progress(done_bytes=0, total_bytes=0, label=label)


def once(job: Job[LoadEvent], cancel: threading.Event) -> tuple[OnProgress, OnProgress]:
    """Who is told of a warm-up, and of what is counted at a model's first load."""

    def warming(done: int, total: int) -> None:
        if cancel.is_set():
            raise CancelledError
        job.put(doing(f"compiling the GPU kernels, step {done} of {total}"))

    def counting(done: int, total: int) -> None:
        if cancel.is_set():
            raise CancelledError
        job.put(doing(f"{COUNTING}, {done} of {total} tokens"))

    return warming, counting


def bytes_of(engine: Engine) -> int:
    """Of a model's weights and its cache, full."""
    return engine.loaded.weight_bytes + engine.plan.max_bytes


def planned(engine: Engine) -> dict[str, Any]:
    """Of a `ModelInfo`, what follows from the plan of the cache."""
    plan = engine.plan
    return {
        "window": plan.max_tokens,
        "holds": plan.most_held,
        "max_bytes": plan.max_bytes,
        "layer_bytes": plan.layer_bytes,
        "token_bytes": plan.token_bytes,
        "block": plan.sizes.block,
        "kv": plan.kv,
        "backend": plan.backend.value,
    }


def info_of(
    engine: Engine, chat: ChatTokens, spec: str, path: Path, notes: tuple[str, ...]
) -> ModelInfo:
    """What a loaded model is, and its cache."""
    loaded = engine.loaded
    return ModelInfo(
        name=loaded.title,
        spec=spec,
        path=path,
        file_bytes=loaded.file_bytes,
        weight_bytes=loaded.weight_bytes,
        layers=engine.plan.shape.layers,
        thinks=chat.thinks,
        has_switch=chat.has_switch,
        sampling=loaded.sampling,
        notes=notes,
        **planned(engine),
    )
