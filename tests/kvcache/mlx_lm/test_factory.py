"""Caches of models of which ember's replace only some."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.cache import CacheList, load_prompt_cache, save_prompt_cache

from kvcache import CacheConfig, CacheError, HotDtype, make_prompt_cache, mlx_lm
from kvcache.mlx_lm import describe
from tests.kvcache.mlx_lm import zoo
from tests.kvcache.mlx_lm.naive_caches import ours_of

CONFIG = CacheConfig(
    keys="h8", values="q6", hot_dtype=HotDtype.F32, max_tokens=60, sinks=2, hot=8, block=4
)
_OURS = "ember's, 57 tokens: the first 2 and the newest 8 unencoded, older ones as h8/q6"
_SEEN = f"ember's, the {zoo.WINDOW} tokens that the layer sees"
_STATE = "mlx-lm's, a state of one size"
_THEIRS = f"mlx-lm's, the {zoo.WINDOW} tokens that the layer sees"


def test_nothing_is_kept_decoded_beside_a_budget() -> None:
    config = replace(CONFIG, max_tokens=None, budget=2**16)
    assert {each.most_decoded for each in make_prompt_cache(zoo.make("llama"), config)} == {0}
    assert min(each.most_decoded for each in make_prompt_cache(zoo.make("llama"), CONFIG)) > 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llama", [f"layers 0-1: {_OURS}"]),
        ("olmo3", [f"layer 0: {_SEEN}", f"layer 1: {_OURS}"]),
        # Its windows have shorter keys.
        ("gemma4_text", [f"layer 0: {_THEIRS}", f"layer 1: {_OURS}"]),
        # Its windows show a token more in a prompt than in an answer.
        ("plamo3", [f"layer 0: {_THEIRS}", f"layer 1: {_OURS}"]),
        ("qwen3_next", [f"layer 0: {_STATE}", f"layer 1: {_OURS}"]),
        ("falcon_h1", [f"layers 0-1: {_STATE} and {_OURS}"]),
        (
            "llama4",
            [f"layers 0-2: mlx-lm's, a chunk of {zoo.WINDOW} tokens", f"layer 3: {_OURS}"],
        ),
    ],
)
def test_what_bounds_which_layer_is_said(name: str, said: list[str]) -> None:
    assert describe(make_prompt_cache(zoo.make(name), CONFIG)).splitlines() == said


class _Still(nn.Module):  # type: ignore[misc]  # mlx tells no types
    """Attends to nothing."""

    def __call__(self, x: mx.array, mask: Any, cache: Any) -> mx.array:
        return 0 * x


def test_a_layer_that_appends_nothing_keeps_its_empty_cache() -> None:
    model = zoo.make("llama")
    model.layers[1].self_attn = _Still()
    assert describe(make_prompt_cache(model, CONFIG)).splitlines() == [
        f"layer 0: {_OURS}",
        "layer 1: mlx-lm's, empty: the layer keeps no tokens of its own",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "qwen3_next",
        "falcon_h1",
        "gemma4_text",
        "llama4",
        # A rope that turns the other way, and one that leaves some dimensions.
        "nanochat",
        "deepseek_v2 (values as long as keys)",
    ],
)
def test_mixed_caches_are_saved_and_loaded_by_mlx_lm(name: str, tmp_path: Path) -> None:
    model = zoo.make(name)
    caches = make_prompt_cache(model, CONFIG)
    words = [(7 * i + 3) % zoo.VOCABULARY for i in range(80)]
    for start in range(0, 80, 8):
        mx.eval(model(mx.array([words[start : start + 8]]), cache=caches))
    file = str(tmp_path / "cache.safetensors")
    save_prompt_cache(file, caches)
    loaded = load_prompt_cache(file)
    assert describe(loaded) == describe(caches)
    assert all(layer.stats().evicted for layer in ours_of(loaded))
    turned = [layer.rotation is not None for layer in ours_of(caches)]
    assert [layer.rotation is not None for layer in ours_of(loaded)] == turned
    want, got = (model(mx.array([[5, 6]]), cache=each)[0] for each in (caches, loaded))
    np.testing.assert_array_equal(np.array(got), np.array(want))


def test_a_budget_is_shared_by_layers_that_are_ours() -> None:
    hybrid, whole = (
        ours_of(make_prompt_cache(zoo.make(name), replace(CONFIG, max_tokens=None, budget=2**16)))
        for name in ("qwen3_next", "qwen3")
    )
    assert (len(hybrid), len(whole)) == (1, 2)
    held = [cache[0].plan.sizes.max_tokens for cache in (hybrid, whole)]
    assert held[0] > 1.8 * held[1]


def test_codecs_by_layer_are_those_of_layers_that_are_ours() -> None:
    model = zoo.make("qwen3_next")
    (layer,) = ours_of(make_prompt_cache(model, replace(CONFIG, by_layer=("q4/q3",))))
    assert (layer.plan.keys, layer.plan.values) == ("q4", "q3")
    with pytest.raises(CacheError, match="codecs by layer for 2, expected 1"):
        make_prompt_cache(model, replace(CONFIG, by_layer=("q4/q3",) * 2))


def _injected(model: Any) -> list[Any]:
    mlx_lm.inject(model, CONFIG)
    return list(model.make_cache())


def _made(model: Any) -> list[Any]:
    return list(make_prompt_cache(model, CONFIG))


@pytest.mark.parametrize("make", [_injected, _made])
def test_lists_of_several_caches_stay_lists(make: Callable[[Any], list[Any]]) -> None:
    caches = make(zoo.make("falcon_h1"))
    assert {type(cache) for cache in caches} == {CacheList}
    assert len(ours_of(caches)) == 2


def test_a_context_that_is_not_said_is_told_of_where_it_matters() -> None:
    gemma, llama = zoo.make("gemma2"), zoo.make("qwen3")
    with pytest.warns(UserWarning, match="gemma2 does not say .* 131,072 are assumed"):
        made = make_prompt_cache(gemma, replace(CONFIG, max_tokens=None))
    assert made[0].plan.sizes.max_tokens > 2**17 - CONFIG.block
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_prompt_cache(gemma, CONFIG)
        made = make_prompt_cache(llama, replace(CONFIG, max_tokens=None))
    assert 999 - CONFIG.block < made[0].plan.sizes.max_tokens <= 999
