"""mlx-lm's models whose layers see different tokens, with caches of ours and of its own."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models import cache as mlx_lm_cache
from mlx_lm.models.cache import (
    KVCache,
    RotatingKVCache,
    can_trim_prompt_cache,
    load_prompt_cache,
    save_prompt_cache,
    trim_prompt_cache,
)

from kvcache import (
    Backend,
    CacheConfig,
    CacheError,
    HotDtype,
    TwoTierKVCache,
    make_prompt_cache,
    mlx_lm,
)
from kvcache.mlx_lm import hook
from kvcache.sight import Sight
from kvcache.tiers.cpu import CpuTiers
from kvcache.tiers.mlx import MlxTiers
from kvcache.turn import NO_ROPE
from tests.kvcache.tiny_llama import generate
from tests.kvcache.tiny_mixed import DIM, HKV, MODELS, VOCABULARY, WINDOW, make_mixed

PROMPT = [(7 * i + 3) % VOCABULARY for i in range(60)]
LOSSLESS = CacheConfig(
    keys="f16", values="f16", hot_dtype=HotDtype.F32, max_tokens=400, hot=24, block=8
)
# Of an order with `MODELS`: how many tokens the layers see.
WINDOWS = {
    "gemma3": [WINDOW, None, WINDOW, None, WINDOW],
    "gemma3 of images": [WINDOW, None, WINDOW, None, WINDOW],
    "cohere2": [WINDOW, None, WINDOW, None, WINDOW],
    "exaone4": [WINDOW, None, WINDOW, None],
    "gpt-oss": [WINDOW, None, WINDOW],
    "ministral3": [WINDOW, None, WINDOW],
    "olmo3": [WINDOW, WINDOW, WINDOW, None, WINDOW],
    "llama": [WINDOW, None, WINDOW],
    "smollm3": [None] * 5,
}


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def model(name: str) -> Any:
    return make_mixed(name)


def _windows(caches: list[TwoTierKVCache]) -> list[int | None]:
    return [cache.plan.sizes.window for cache in caches]


@pytest.mark.usefixtures("with_and_without_hook")
@pytest.mark.parametrize("step", [2048, 17])
def test_generation_is_the_same_as_with_mlx_lms_caches(name: str, model: Any, step: int) -> None:
    own = mlx_lm_cache.make_prompt_cache(model)
    assert {type(cache) for cache in own} <= {KVCache, RotatingKVCache}
    want = generate(model, PROMPT, own, 20, step=step)
    cache = make_prompt_cache(model, LOSSLESS)
    got = generate(model, PROMPT, cache, 20, step=step)
    assert got[0] == want[0]
    np.testing.assert_allclose(np.array(got[1]), np.array(want[1]), atol=2e-4)
    assert _windows(cache) == WINDOWS[name]
    for layer, window in zip(cache, _windows(cache), strict=True):
        held = layer.stats().held
        assert held == 80 if window is None else window <= held < window + 8


def test_both_ways_agree_once_tokens_are_let_go(model: Any) -> None:
    """Also of layers that see all, whose sinks turn by their own rope or not at all."""
    outputs = []
    for installs in (False, True):
        if installs:
            mlx_lm.install()
        config = replace(LOSSLESS, max_tokens=50, hot=5)
        cache = make_prompt_cache(model, config)
        outputs.append(generate(model, PROMPT, cache, 30, step=1)[1])
        mlx_lm.uninstall()
        assert all(layer.stats().evicted for layer in cache)
        assert all(layer.stats().sinks_turned for layer in cache)
    for fetched, routed in zip(*outputs, strict=True):
        np.testing.assert_allclose(np.asarray(fetched), np.asarray(routed), atol=5e-4)


def test_windows_are_as_all_layers_where_these_hold_no_more(model: Any) -> None:
    cache = make_prompt_cache(model, replace(LOSSLESS, max_tokens=WINDOW, hot=2, block=4))
    assert len({layer.plan.sizes for layer in cache}) == 1
    tokens, logprobs = generate(model, PROMPT, cache, 20, step=7)
    assert len(tokens) == 20
    assert all(mx.isfinite(logprob).all().item() for logprob in logprobs)


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_mask_that_is_only_the_rule_leaves_the_kernels_their_work(
    layer: int, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What mlx-lm was given as an array comes back as what it stands for.

    As the same object, or, where the CPU's kernels have to wait anyway, as an equal one.
    """
    monkeypatch.setattr(TwoTierKVCache, "keeps_snapshot", True)
    config = replace(LOSSLESS, max_tokens=50, slack=0, backend=backend)
    caches = make_prompt_cache(make_mixed("gemma3 of 7"), config)
    first, *others = caches[layer::2]
    k = mx.random.normal((1, HKV, 49, DIM), key=mx.random.key(1))
    for cache in (first, *others):
        cache.append(k[:, :, :40], k[:, :, :40])
    mask = first.make_mask(9, return_array=True, window_size=WINDOW if layer == 0 else None)
    assert isinstance(mask, mx.array)
    seen: list[Sight] = []
    tiers, name = {
        Backend.REFERENCE: (MlxTiers, "attend_snapshot"),
        Backend.CPU: (CpuTiers, "attend"),
    }[backend]
    attend = getattr(tiers, name)

    def seeing(*args: Any) -> mx.array:
        seen.append(next(arg for arg in args if isinstance(arg, Sight)))
        found: mx.array = attend(*args)
        return found

    monkeypatch.setattr(tiers, name, seeing)
    outputs = []
    other = np.array(mask)
    other[0, -10] = not other[0, -10]
    for cache, given in zip(
        (first, *others), (mask, mx.array(np.array(mask)), mx.array(other)), strict=False
    ):
        fetched = cache.update_and_fetch(k[:, :, 40:], k[:, :, 40:])
        out = hook.attend(mx.ones((1, 6, 9, DIM)), *fetched, scale=0.3, mask=given)
        outputs.append(np.array(out))
    assert [sight.suits_kernels for sight in seen] == [True, backend is Backend.CPU, False]
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5)
    assert np.abs(outputs[0] - outputs[2]).max() > 1e-3


def test_each_layer_turns_by_its_own_rope() -> None:
    def slowest(name: str) -> list[float | None]:
        return [
            None if one is NO_ROPE else float(one.periods[-1])
            for one in mlx_lm.rotations_of(make_mixed(name))
            if one is not None
        ]

    local, whole = 10_000.0 ** (15 / 16), 1_000_000.0 ** (15 / 16)
    assert slowest("gemma3") == pytest.approx([local, whole, local, whole, local])
    cohere = slowest("cohere2")
    assert [period is None for period in cohere] == [False, True, False, True, False]
    assert [period is None for period in slowest("exaone4")] == [False, True, False, True]
    assert [period is None for period in slowest("smollm3")] == [False, False, False, True, False]
    assert mlx_lm.rotation_of(make_mixed("gemma3")) is None
    assert mlx_lm.rotation_of(make_mixed("llama")) is not None


def test_saved_and_loaded_by_mlx_lm(model: Any, tmp_path: Path) -> None:
    cache = make_prompt_cache(model, replace(LOSSLESS, keys="hkivi5", values="turbo3u"))
    generate(model, PROMPT, cache, 20, step=32)
    file = str(tmp_path / "cache.safetensors")
    save_prompt_cache(file, cache)
    loaded = load_prompt_cache(file)
    held = [replace(layer.ledger, lower=None) for layer in cache]
    assert [layer.ledger for layer in loaded] == held
    assert [layer.stats().sinks_turned for layer in loaded] == [True] * len(cache)
    want, _ = generate(model, [5, 6, 7], copy.deepcopy(cache), 10)
    assert generate(model, [5, 6, 7], loaded, 10)[0] == want


def test_trimming_as_mlx_lm_does(name: str, model: Any) -> None:
    cache = make_prompt_cache(model, replace(LOSSLESS, hot=99))
    generate(model, PROMPT[:10], cache, 1)
    assert can_trim_prompt_cache(cache)
    assert trim_prompt_cache(cache, 4) == 4
    assert {layer.offset for layer in cache} == {7}
    generate(model, PROMPT, cache, 1)
    assert can_trim_prompt_cache(cache)
    assert trim_prompt_cache(cache, 16) == 16
    assert {layer.offset for layer in cache} == {67 + 1 - 16}
    # No window lacks what it would show: as without the tokens that were dropped.
    fresh = make_prompt_cache(model, replace(LOSSLESS, hot=99))
    generate(model, PROMPT[:10], fresh, 1)
    trim_prompt_cache(fresh, 4)
    model(mx.array([PROMPT[:45]]), cache=fresh)
    assert [layer.stats().evicted for layer in cache] == [layer.stats().evicted for layer in fresh]
    for ours, anew in zip(cache, fresh, strict=True):
        np.testing.assert_allclose(np.array(ours.keys()), np.array(anew.keys()), atol=1e-4)


def test_every_cache_that_mlx_lm_makes_is_ours_once_installed_so(name: str, model: Any) -> None:
    mlx_lm.install(LOSSLESS)
    try:
        made = mlx_lm_cache.make_prompt_cache(model, max_kv_size=77)
        assert {type(layer) for layer in made} == {TwoTierKVCache}
        assert _windows(made) == WINDOWS[name]
        assert max(layer.plan.sizes.max_tokens for layer in made) <= 77
    finally:
        mlx_lm.uninstall()


class _Refused(nn.Module):  # type: ignore[misc]  # mlx tells no types
    """Makes caches as no model of mlx-lm's does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Module()]

    def make_cache(self) -> list[Any]:
        return [mlx_lm_cache.ConcatenateKVCache()]


def test_a_cache_of_unknown_growth_is_refused_by_name() -> None:
    with pytest.raises(CacheError, match="_Refused wants ConcatenateKVCache"):
        make_prompt_cache(_Refused(), LOSSLESS)
