"""mlx-lm's speculative decoding over our caches gives what plain decoding gives."""

from dataclasses import replace
from importlib import import_module
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map
from mlx_lm.models.cache import KVCache, LRUPromptCache

from kvcache import (
    Backend,
    BlockPool,
    CacheConfig,
    CacheError,
    DynamicKVCache,
    HotDtype,
    PagedKVCache,
    mlx_lm,
)
from kvcache.mlx_lm import make_prompt_cache
from tests.kvcache.tiny_llama import DIM, HKV, LAYERS, VOCABULARY, generate, make_model
from tests.kvcache.tiny_mixed import make_mixed

mlx_lm_generate: Any = import_module("mlx_lm.generate")

PROMPT = [(7 * i + 3) % VOCABULARY for i in range(40)]
LOSSLESS = CacheConfig(
    keys="f16", values="f16", hot_dtype=HotDtype.F32, max_tokens=80, hot=16, block=8
)
CODED = replace(LOSSLESS, keys="q4", values="q3")


@pytest.fixture(scope="module")
def model() -> Any:
    """Loud enough that what is seen decides."""
    return _louder(make_model(), 3.0)


@pytest.fixture(scope="module")
def draft(model: Any) -> Any:
    """Guesses right now and then."""
    made, key = _louder(make_model(), 3.0), mx.random.key(5)
    noise = tree_map(lambda x: x + 0.1 * mx.random.normal(x.shape, key=key), made.parameters())
    made.update(noise)
    return made


def _louder(model: Any, by: float) -> Any:
    model.update(tree_map(lambda x: x * by if x.ndim > 1 else x, model.parameters()))
    return model


def _speculate(
    model: Any, draft: Any, caches: list[Any], count: int, drafts: int
) -> tuple[list[int], list[mx.array], int]:
    """Tokens, their log-probabilities, and how many came from the draft."""
    steps = mlx_lm_generate.speculative_generate_step(
        mx.array(PROMPT),
        model,
        draft,
        prompt_cache=caches,
        max_tokens=count,
        num_draft_tokens=drafts,
    )
    found = [(int(token), logprob, drafted) for token, logprob, drafted in steps]
    return (
        [token for token, _, _ in found],
        [logprob for _, logprob, _ in found],
        sum(drafted for _, _, drafted in found),
    )


@pytest.mark.usefixtures("with_and_without_hook")
@pytest.mark.parametrize("config", [LOSSLESS, CODED], ids=["lossless", "coded"])
@pytest.mark.parametrize("drafts", [3, 16])
def test_drafts_change_no_token(model: Any, draft: Any, config: CacheConfig, drafts: int) -> None:
    want, logprobs = generate(model, PROMPT, make_prompt_cache(model, config), 90)
    assert len(set(want)) > 20
    caches = [*make_prompt_cache(model, config), *make_prompt_cache(draft, config)]
    got, found, accepted = _speculate(model, draft, caches, 90, drafts)
    assert got == want
    assert 0 < accepted < 90
    assert caches[0].stats().evicted > 0
    for one, other in zip(found, logprobs, strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other).ravel(), atol=2e-2)


@pytest.mark.usefixtures("with_and_without_hook")
@pytest.mark.parametrize("name", ["gemma3", "smollm3"])
def test_drafts_change_no_token_where_layers_differ(name: str) -> None:
    model, draft = make_mixed(name), make_model()
    config = replace(LOSSLESS, max_tokens=48, hot=9)
    want, _ = generate(model, PROMPT, make_prompt_cache(model, config), 45)
    caches = [*make_prompt_cache(model, config), *make_prompt_cache(draft, config)]
    assert _speculate(model, draft, caches, 45, 4)[0] == want


def test_drafts_change_no_token_of_unencoded_caches(model: Any, draft: Any) -> None:
    want, _ = generate(model, PROMPT, [KVCache() for _ in range(LAYERS)], 60)
    kind: dict[str, Any] = {"dtype": HotDtype.F32, "backend": Backend.REFERENCE}
    dynamic = [DynamicKVCache(200, **kind) for _ in range(2 * LAYERS)]
    assert _speculate(model, draft, dynamic, 60, 3)[0] == want
    pools = [
        BlockPool(20, kv_heads=HKV, head_dim=DIM, page_tokens=8, **kind) for _ in range(2 * LAYERS)
    ]
    assert _speculate(model, draft, [PagedKVCache(pool) for pool in pools], 60, 3)[0] == want
    bounded = [PagedKVCache(pool, max_pages=5) for pool in pools]
    with pytest.raises(ValueError, match="requires a trimmable prompt cache"):
        _speculate(model, draft, bounded, 60, 3)


def test_drafts_that_cannot_be_taken_back_are_refused_before_the_first_token(
    model: Any, draft: Any
) -> None:
    caches = [*make_prompt_cache(model, LOSSLESS), *make_prompt_cache(draft, LOSSLESS)]
    with pytest.raises(CacheError, match=r"drafts of 17 tokens, but a cache takes back 16: give"):
        _speculate(model, draft, caches, 60, 17)
    assert caches[0].empty()
    longer = replace(LOSSLESS, slack=17)
    caches = [*make_prompt_cache(model, longer), *make_prompt_cache(draft, longer)]
    want, _ = generate(model, PROMPT, make_prompt_cache(model, longer), 60)
    assert _speculate(model, draft, caches, 60, 17)[0] == want
    mlx_lm.check_drafts([KVCache()], 99)


def test_caches_that_mlx_lm_makes_itself_are_asked_too(model: Any, draft: Any) -> None:
    mlx_lm.install(replace(LOSSLESS, slack=2))
    try:
        with pytest.raises(CacheError, match="but a cache takes back 2"):
            mlx_lm_generate.speculative_generate_step(
                mx.array(PROMPT), model, draft, num_draft_tokens=3
            )
        steps = mlx_lm_generate.speculative_generate_step(
            mx.array(PROMPT), model, draft, num_draft_tokens=2, max_tokens=50
        )
        got = [int(token) for token, _, _ in steps]
    finally:
        mlx_lm.uninstall()
    assert got == generate(model, PROMPT, make_prompt_cache(model, LOSSLESS), 50)[0]


@pytest.mark.parametrize("count", [2, 90])
def test_a_kept_prompt_that_parts_at_its_end_is_taken_up(model: Any, count: int) -> None:
    kept, cache = LRUPromptCache(3), make_prompt_cache(model, CODED)
    tokens = [*PROMPT, *generate(model, PROMPT, cache, count)[0]]
    kept.insert_cache("model", tokens, cache)
    found, rest = kept.fetch_nearest_cache("model", [*tokens[:-1], 5, 6])
    assert rest == [5, 6]
    assert {layer.offset for layer in found} == {len(tokens) - 1}
    fresh = make_prompt_cache(model, CODED)
    generate(model, PROMPT, fresh, count - 1)
    want = generate(model, rest, fresh, 20)[0]
    assert generate(model, rest, found, 20)[0] == want


def test_a_kept_prompt_that_parts_too_far_back_is_computed_anew(model: Any) -> None:
    kept, cache = LRUPromptCache(3), make_prompt_cache(model, CODED)
    tokens = [*PROMPT, *generate(model, PROMPT, cache, 90)[0]]
    kept.insert_cache("model", tokens, cache)
    other = [*tokens[:50], 5, 6]
    assert kept.fetch_nearest_cache("model", other) == (None, other)
    assert {layer.offset for layer in cache} == {len(tokens)}
