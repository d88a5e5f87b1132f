"""Our cache in mlx-lm's own models, loops and files."""

import copy
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import base
from mlx_lm.models import cache as mlx_lm_cache
from mlx_lm.models.cache import (
    KVCache,
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
    KeyMetric,
    TwoTierKVCache,
    make_prompt_cache,
    mlx_lm,
)
from kvcache.fetched.marks import StandIn
from kvcache.mlx_lm import hook
from kvcache.snapshot import Snapshot, Tokens
from tests.kvcache.codecs.metrics import moments_of, queries
from tests.kvcache.tiny_llama import DIM, HKV, LAYERS, generate, make_model

PROMPT = [(7 * i + 3) % 101 for i in range(90)]
LOSSLESS = CacheConfig(keys="f16", values="f16", hot_dtype=HotDtype.F32, max_tokens=400)
SMALL = replace(LOSSLESS, max_tokens=80, hot=16, block=8)
ATTENTION = "scaled_dot_product_attention"


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model()


@pytest.mark.usefixtures("with_and_without_hook")
@pytest.mark.parametrize("step", [2048, 17])
def test_generation_is_the_same_as_with_mlx_lms_cache(model: Any, step: int) -> None:
    want, _ = generate(model, PROMPT, [KVCache() for _ in range(LAYERS)], 30, step=step)
    cache = make_prompt_cache(model, LOSSLESS)
    got, _ = generate(model, PROMPT, cache, 30, step=step)
    assert got == want
    assert cache[0].stats().total == 90 + 30


@pytest.mark.usefixtures("with_and_without_hook")
@pytest.mark.parametrize("kv", [("f16", "f16"), ("hkivi5", "turbo3u"), ("h8", "q8")])
def test_generation_beyond_the_window_stays_bounded(model: Any, kv: tuple[str, str]) -> None:
    config = replace(SMALL, keys=kv[0], values=kv[1])
    cache = make_prompt_cache(model, config)
    tokens, logprobs = generate(model, PROMPT, cache, 120, step=32)
    assert len(tokens) == 120
    assert all(mx.isfinite(logprob).all().item() for logprob in logprobs)
    stats = cache[0].stats()
    assert (stats.total, stats.held <= 80) == (90 + 120, True)
    assert stats.evicted > 0


@pytest.mark.parametrize("step", [1, 32])
def test_both_ways_agree_token_by_token(model: Any, step: int) -> None:
    outputs = []
    for installs in (False, True):
        if installs:
            mlx_lm.install()
        cache = make_prompt_cache(model, replace(SMALL, keys="h4", values="turbo3u"))
        outputs.append(generate(model, PROMPT, cache, 60, step=step)[1])
        mlx_lm.uninstall()
    for fetched, routed in zip(*outputs, strict=True):
        np.testing.assert_allclose(np.asarray(fetched), np.asarray(routed), atol=2e-4)


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])
def test_attention_does_not_look_at_what_was_fetched(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention must not depend on the decoded window."""
    monkeypatch.setattr(TwoTierKVCache, "keeps_snapshot", True)
    config = replace(SMALL, keys="h4", values="h4", block=16, backend=backend)
    cache, q = make_prompt_cache(make_model(), config)[0], mx.ones((1, 3 * HKV, 1, DIM))
    draw = mx.random.normal((102, 1, HKV, 1, DIM), key=mx.random.key(4))
    for token in draw[:100]:
        hook.attend(q, *cache.update_and_fetch(token, token), scale=0.2)
    held = cache.size()
    nan = mx.full((1, HKV, held, DIM), mx.nan)
    monkeypatch.setattr(Snapshot, "decoded", lambda *_: Tokens(nan, nan))
    keys, values = cache.update_and_fetch(draw[100], draw[101])
    assert keys.shape == values.shape == (1, HKV, held + 1, DIM)
    assert isinstance(keys, StandIn) or mx.isnan(keys[:, :, :held]).all().item()
    out = hook.attend(q, keys, values, scale=0.2)
    assert mx.isfinite(out).all().item()
    assert cache.offset == 101


def test_the_hook_leaves_fetched_tokens_unevaluated(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention must not depend on the decoded window."""
    decoded = Snapshot.decoded

    def poisoned(self: Snapshot, dtype: mx.Dtype) -> Tokens[mx.array]:
        tokens = decoded(self, dtype)
        return Tokens(tokens.keys * mx.nan, tokens.values * mx.nan)

    monkeypatch.setattr(Snapshot, "decoded", poisoned)
    mlx_lm.install()
    try:
        cache = make_prompt_cache(model, replace(SMALL, keys="h4", values="h4"))[0]
        draw = iter(mx.random.normal((202, 1, HKV, 1, DIM), key=mx.random.key(4)))
        for _ in range(100):
            cache.append(next(draw), next(draw))
        fetched = cache.update_and_fetch(next(draw), next(draw))
        q = mx.ones((1, 3 * HKV, 1, DIM))
        attend = partial(base.scaled_dot_product_attention, q, cache=cache, scale=0.2, mask=None)
        # What a model made of them is not ours to answer.
        assert mx.isnan(attend(*(mx.tile(x, [1, 1, 1, 1]) for x in fetched))).all().item()
        assert mx.isfinite(attend(*fetched)).all().item()
    finally:
        mlx_lm.uninstall()


def test_whoever_replaces_attention_after_us_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stock, calls = mx.fast.scaled_dot_product_attention, list[str]()

    def another(*args: Any, **named: Any) -> mx.array:
        calls.append("another")
        found: mx.array = ours(*args, **named)
        return found

    monkeypatch.setattr(mx.fast, ATTENTION, stock)
    mlx_lm.install()
    mlx_lm.install()
    ours = mx.fast.scaled_dot_product_attention
    assert ours is hook.attend
    mlx_lm.uninstall()
    assert mx.fast.scaled_dot_product_attention is stock
    mlx_lm.install()
    setattr(mx.fast, ATTENTION, another)
    q = mx.random.normal((1, HKV, 3, DIM), key=mx.random.key(1))
    want = np.array(stock(q, q, q, scale=0.2))
    for again in (mlx_lm.uninstall, mlx_lm.install, mlx_lm.uninstall):
        again()
        assert mx.fast.scaled_dot_product_attention is another
        got = mx.fast.scaled_dot_product_attention(q, q, q, scale=0.2)
        np.testing.assert_array_equal(np.array(got), want)
    assert calls == ["another"] * 3
    setattr(mx.fast, ATTENTION, ours)
    mlx_lm.uninstall()
    assert mx.fast.scaled_dot_product_attention is stock


def test_injection_reaches_mlx_lms_own_factory() -> None:
    model = make_model()
    mlx_lm.inject(model, SMALL)
    cache = mlx_lm_cache.make_prompt_cache(model)
    assert {type(layer) for layer in cache} == {TwoTierKVCache}
    assert len(cache) == LAYERS
    tokens, _ = generate(model, PROMPT, cache, 5)
    assert len(tokens) == 5


def test_a_metric_reaches_every_cache(model: Any) -> None:
    moments = moments_of(queries(HKV, DIM))
    metric = KeyMetric.of([moments] * LAYERS)
    other, config = KeyMetric.of([moments] * (LAYERS + 1)), replace(SMALL, keys="hkivi4")
    own = make_model()
    mlx_lm.inject(own, config, metric=metric)
    mlx_lm.install(config, metric=metric)
    try:
        for made in (
            make_prompt_cache(model, config, metric=metric),
            mlx_lm_cache.make_prompt_cache(own),
            mlx_lm_cache.make_prompt_cache(model),
        ):
            assert [cache.metric for cache in made] == list(metric.layers)
        mlx_lm.install(config, metric=other)
        with pytest.raises(CacheError, match="the key metric of another model"):
            mlx_lm_cache.make_prompt_cache(model)
    finally:
        mlx_lm.uninstall()
    with pytest.raises(CacheError, match="the key metric of another model"):
        mlx_lm.inject(own, config, metric=other)


def test_every_cache_that_mlx_lm_makes_is_ours_once_installed_so(model: Any) -> None:
    mlx_lm.install(SMALL)
    try:
        made = mlx_lm_cache.make_prompt_cache(model)
        assert [type(layer) for layer in made] == [TwoTierKVCache] * LAYERS
        assert sys.modules["mlx_lm.generate"].make_prompt_cache is mlx_lm_cache.make_prompt_cache
        for asked, bound in ((None, 80), (50, 50), (99, 80)):
            made = mlx_lm_cache.make_prompt_cache(model, max_kv_size=asked)
            assert (
                made[0].plan == make_prompt_cache(model, replace(SMALL, max_tokens=bound))[0].plan
            )
    finally:
        mlx_lm.uninstall()
    assert {type(layer) for layer in mlx_lm_cache.make_prompt_cache(model)} == {KVCache}


def test_saved_and_loaded_by_mlx_lm(model: Any, tmp_path: Path) -> None:
    cache = make_prompt_cache(model, replace(SMALL, keys="hkivi5", values="turbo3u"))
    generate(model, PROMPT, cache, 40, step=32)
    file = str(tmp_path / "cache.safetensors")
    save_prompt_cache(file, cache, {"note": "x"})
    loaded, metadata = load_prompt_cache(file, return_metadata=True)
    assert metadata == {"note": "x"}
    held = [replace(layer.ledger, lower=None) for layer in cache]
    assert [layer.ledger for layer in loaded] == held
    assert loaded[0].stats().sinks_turned
    want, _ = generate(model, [5, 6, 7], copy.deepcopy(cache), 10)
    got, _ = generate(model, [5, 6, 7], loaded, 10)
    assert got == want


def test_trimming_as_mlx_lm_does(model: Any) -> None:
    cache = make_prompt_cache(model, LOSSLESS)
    generate(model, PROMPT, cache, 2)
    assert can_trim_prompt_cache(cache)
    assert trim_prompt_cache(cache, 80) == 80
    assert cache[0].offset == 90 + 2 - 80
    full = make_prompt_cache(model, SMALL)
    generate(model, PROMPT, full, 2)
    assert can_trim_prompt_cache(full)
    assert trim_prompt_cache(full, 5) == 5
    assert {layer.offset for layer in full} == {90 + 2 - 5}
    with pytest.raises(CacheError, match="got 80 tokens to trim, expected at most"):
        trim_prompt_cache(full, 80)
