"""PagedKVCache in mlx-lm's own generation loop and cache functions."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import cache as mlx_lm_cache

from kvcache import Backend, BlockPool, HotDtype, PagedKVCache
from tests.kvcache.tiny_llama import DIM, HKV, LAYERS, generate, make_model

PROMPT = [int(token) for token in np.random.default_rng(1).integers(0, 101, 37)]


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model()


def _pools(backend: Backend = Backend.AUTO) -> list[BlockPool]:
    return [
        BlockPool(
            23, kv_heads=HKV, head_dim=DIM, page_tokens=7, dtype=HotDtype.F32, backend=backend
        )
        for _ in range(LAYERS)
    ]


@pytest.mark.parametrize("backend", [Backend.AUTO, Backend.REFERENCE])
@pytest.mark.parametrize("step", [2048, 11])
def test_generates_what_the_plain_cache_generates(model: Any, step: int, backend: Backend) -> None:
    plain = mlx_lm_cache.make_prompt_cache(model)
    want, want_logprobs = generate(model, PROMPT, plain, 19, step=step)
    cache = [PagedKVCache(pool) for pool in _pools(backend)]
    got, logprobs = generate(model, PROMPT, cache, 19, step=step)
    assert got == want
    for ours, theirs in zip(logprobs, want_logprobs, strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=2e-4)


def test_a_forked_prompt_is_continued_as_if_it_were_computed_again(model: Any) -> None:
    pools = _pools()
    prefix = [PagedKVCache(pool) for pool in pools]
    generate(model, PROMPT, prefix, 1)
    assert mlx_lm_cache.trim_prompt_cache(prefix, prefix[0].offset - len(PROMPT)) >= 0
    asked = [7, 3, 5]
    answers = []
    for question in ([9], asked):
        fork = [layer.fork() for layer in prefix]
        answers.append(generate(model, question, fork, 13)[0])
    fresh = mlx_lm_cache.make_prompt_cache(model)
    assert answers[1] == generate(model, [*PROMPT, *asked], fresh, 13)[0]
    del fork
    assert [pool.stats().in_use for pool in pools] == [6] * LAYERS


def test_a_trimmed_cache_continues_like_a_fresh_one(model: Any) -> None:
    cache = [PagedKVCache(pool) for pool in _pools()]
    first, _ = generate(model, PROMPT, cache, 13)
    assert mlx_lm_cache.can_trim_prompt_cache(cache)
    more = cache[0].offset - len(PROMPT) + 1
    assert mlx_lm_cache.trim_prompt_cache(cache, more) == more
    again, _ = generate(model, PROMPT[-1:], cache, 13)
    assert again == first


def test_saves_and_loads_through_mlx_lm(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlx_lm_cache, "PagedKVCache", PagedKVCache, raising=False)
    cache = [PagedKVCache(pool) for pool in _pools()]
    generate(model, PROMPT, cache, 5)
    path = str(tmp_path / "prompt.safetensors")
    mlx_lm_cache.save_prompt_cache(path, cache)
    loaded = mlx_lm_cache.load_prompt_cache(path)
    assert loaded[0].stats() == cache[0].stats()
    assert mx.array_equal(loaded[2].values(), cache[2].values())
    assert generate(model, [8, 2], loaded, 7)[0] == generate(model, [8, 2], cache, 7)[0]


def test_a_window_of_pages_bounds_an_endless_generation(model: Any) -> None:
    pools = _pools()
    cache = [PagedKVCache(pool, max_pages=4) for pool in pools]
    tokens, logprobs = generate(model, PROMPT, cache, 150, step=7)
    assert len(tokens) == 150
    assert all(bool(mx.isfinite(row).all()) for row in logprobs)
    assert all(pool.stats().high_water <= 5 for pool in pools)
    assert not mlx_lm_cache.can_trim_prompt_cache(cache)
