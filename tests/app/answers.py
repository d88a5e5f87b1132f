"""A prompt, and its answer by an engine or by a loop without a cache."""

from collections.abc import Iterator

import mlx.core as mx

from app.engine import Engine
from app.events import Completion, Event, Finished
from kvcache import CacheConfig, HotDtype

CONFIG = CacheConfig(hot_dtype=HotDtype.F32)
PROMPT = tuple(range(260, 301))  # 41 tokens: more than one prefill step


def finish(events: Iterator[Event]) -> Completion:
    """The only row's answer, once it has ended."""
    *_, last = events
    assert isinstance(last, Finished)
    return last.completion


def greedy(engine: Engine, prompt: tuple[int, ...], count: int) -> list[int]:
    """Greedy decoding without any cache."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(mx.argmax(engine.loaded.model(mx.array([ids]))[0, -1]).item()))
    return ids[len(prompt) :]
