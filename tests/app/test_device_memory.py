from dataclasses import replace

import mlx.core as mx
import pytest

from app import device_memory, generation
from app.engine import PREFILL_STEP, Engine, Request
from kvcache import CacheConfig, HotDtype


def test_metal_may_keep_what_it_recommends(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 7 << 30})
    monkeypatch.setattr(mx, "set_wired_limit", limits.append)
    device_memory.wire()
    assert limits == [7 << 30]


def test_nothing_is_asked_for_without_metal(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    monkeypatch.setattr(mx, "set_wired_limit", limits.append)
    device_memory.wire()
    assert limits == []


def test_scratch_is_released_after_prompt_steps_and_now_and_then(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[int] = []
    monkeypatch.setattr(generation, "release_scratch", lambda: released.append(1))
    monkeypatch.setattr(generation, "_RELEASE_TOKENS", 4)
    fresh = Engine(engine.loaded, replace(CacheConfig(), hot_dtype=HotDtype.F32))
    prompt = tuple(range(260, 301))
    list(fresh.generate(Request(prompt=prompt, max_tokens=10)))
    steps = -(-len(prompt) // PREFILL_STEP[fresh.plan.backend])
    assert len(released) == steps + 2
