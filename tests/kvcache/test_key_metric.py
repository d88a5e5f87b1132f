from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from kvcache import Backend, CacheConfig, CacheError, KeyMetric, ModelShape, Rotation, resolve
from kvcache.key_metric import anywhere
from kvcache.prompt_cache import from_plan, set_policy
from kvcache.two_tier import TwoTierKVCache
from tests.kvcache.codecs.metrics import moments_of, queries

LAYERS, HKV, DIM = 2, 3, 64
SHAPE = ModelShape(layers=LAYERS, kv_heads=HKV, head_dim=DIM, context=4096)
CONFIG = CacheConfig(
    max_tokens=101, hot=16, block=16, keys="hkivi4", values="q4", backend=Backend.REFERENCE
)


def _metric() -> KeyMetric:
    return KeyMetric.of([moments_of(queries(HKV, DIM, seed=seed)) for seed in range(LAYERS)])


def _tokens(count: int, seed: int = 0) -> tuple[mx.array, mx.array]:
    k, v = np.random.default_rng(seed).normal(size=(2, 1, HKV, count, DIM)).astype(np.float32)
    return mx.array(k), mx.array(v)


def _filled(metric: KeyMetric | None, backend: Backend = Backend.REFERENCE) -> TwoTierKVCache:
    fields = CONFIG.as_dict() | {"backend": backend.value}
    cache = from_plan(resolve(CacheConfig.from_dict(fields), SHAPE), None, metric)[0]
    cache.append(*_tokens(90))
    return cache


def test_what_is_saved_is_loaded_and_stays_in_the_file(tmp_path: Path) -> None:
    metric, path = _metric(), tmp_path / "metric.safetensors"
    metric.save(path)
    loaded = KeyMetric.load(path)
    loaded.check(LAYERS, HKV, DIM)
    for one, other in zip(metric.layers, loaded.layers, strict=True):
        assert mx.array_equal(one.moments(), other.moments())


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])
def test_a_file_that_goes_amid_a_chat_is_not_missed(tmp_path: Path, backend: Backend) -> None:
    path, expected = tmp_path / "metric.safetensors", _filled(_metric(), backend)
    _metric().save(path)
    fields = CONFIG.as_dict() | {"backend": backend.value}
    plan = resolve(CacheConfig.from_dict(fields), SHAPE)
    cache = from_plan(plan, None, KeyMetric.load(path))[0]
    path.unlink()
    cache.append(*_tokens(90))
    assert mx.array_equal(cache.keys(), expected.keys())


@pytest.mark.parametrize("cut", [0, 9, 4000])
def test_a_damaged_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metric.safetensors"
    _metric().save(path)
    whole = bytearray(path.read_bytes())
    path.write_bytes(whole[:cut])
    with pytest.raises(CacheError, match="is no key metric"):
        KeyMetric.load(path)
    whole[-5000] ^= 1
    path.write_bytes(whole)
    with pytest.raises(CacheError, match=rf"^the key metric {path} is damaged: .* count it again$"):
        KeyMetric.load(path)


def test_moments_that_no_queries_have_are_refused() -> None:
    good = mx.eye(8)[None]
    for bad in (-good, good * float("nan")):
        with pytest.raises(CacheError, match="infinite, or below zero"):
            KeyMetric.of([good, bad])
    for shapes in ([good, mx.eye(4)[None]], [good[0]], [good.astype(mx.float16)], []):
        with pytest.raises(CacheError, match=r"expected float32 \[Hkv, D, D\]"):
            KeyMetric.of(shapes)


def test_the_metric_of_another_model_is_refused() -> None:
    other = ModelShape(layers=LAYERS + 1, kv_heads=HKV, head_dim=DIM, context=4096)
    with pytest.raises(CacheError, match="metric of another model, 2 layers"):
        from_plan(resolve(CONFIG, other), None, _metric())


@pytest.mark.parametrize("traditional", [True, False])
@pytest.mark.parametrize("turning", [16, 24])
def test_the_mean_over_positions_is_that_of_turned_queries(turning: int, traditional: bool) -> None:
    """Half over the usual positions, counted one by one, half without what turns at all."""
    dim, periods = 24, 50.0 ** (np.arange(turning // 2) / 6)
    rotation = Rotation(periods=periods, traditional=traditional)
    q = queries(2, dim, count=40)
    places = list(range(0, 8192, 7))
    usual = sum(moments_of(rotation(q[None], [place] * 40)[0]) for place in places) / len(places)
    got = 2 * np.asarray(anywhere(moments_of(q), rotation)) - np.asarray(usual)
    # What is left is the mean over all positions: pairs that turn are round, and apart.
    pairs = np.arange(turning).reshape((-1, 2) if traditional else (2, -1))
    pairs = pairs if traditional else pairs.T
    moments, scale = np.asarray(moments_of(q)), float(np.abs(got).max())
    want = np.zeros_like(got)
    for a, b in pairs:
        mean = (moments[:, a, a] + moments[:, b, b]) / 2
        want[:, a, a] = want[:, b, b] = mean
    want[:, turning:, turning:] = moments[:, turning:, turning:]
    np.testing.assert_allclose(got, want, atol=0.05 * scale)


def test_without_a_known_rope_moments_stay() -> None:
    moments = moments_of(queries(2, 16))
    assert mx.array_equal(anywhere(moments, None), moments)


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])
def test_a_cache_keeps_its_metric_through_copies_plans_and_states(backend: Backend) -> None:
    metric = _metric()
    plain, fed = _filled(None, backend), _filled(metric, backend)
    assert not mx.array_equal(plain.keys(), fed.keys())
    assert mx.array_equal(plain.values(), fed.values())
    restored = TwoTierKVCache.from_state(plain.state, backend=backend, metric=metric.layers[0])
    assert mx.array_equal(restored.keys(), plain.keys())
    copied, cleared = fed.__deepcopy__({}), fed
    for cache in (copied, restored):
        cache.reset()
        cache.append(*_tokens(90))
    before = fed.keys()
    assert mx.array_equal(copied.keys(), before)
    assert mx.array_equal(restored.keys(), before)
    cleared.state = plain.state
    cleared.reset()
    cleared.append(*_tokens(90))
    assert mx.array_equal(cleared.keys(), before)


def test_another_plan_goes_on_in_the_metric() -> None:
    plan = resolve(CONFIG, SHAPE)
    caches = from_plan(plan, None, _metric())
    for cache in caches:
        cache.append(*_tokens(20))
    set_policy(caches, resolve(CacheConfig.from_dict(CONFIG.as_dict() | {"hot": 0}), SHAPE))
    assert all(cache.metric is not None and cache.stats().cold for cache in caches)
    plain = from_plan(caches_plan := resolve(CONFIG, SHAPE), None)
    assert caches_plan.takes_metric
    for cache in plain:
        cache.append(*_tokens(20))
    set_policy(plain, resolve(CacheConfig.from_dict(CONFIG.as_dict() | {"hot": 0}), SHAPE))
    assert not mx.array_equal(plain[0].keys(), caches[0].keys())


@pytest.mark.parametrize(("keys", "takes"), [("hkivi3", True), ("kivi4", False), ("h4", False)])
def test_which_plans_take_a_metric(keys: str, takes: bool) -> None:
    plan = resolve(CacheConfig.from_dict(CONFIG.as_dict() | {"keys": keys}), SHAPE)
    assert plan.takes_metric is takes
    assert plan.metric_bytes == (LAYERS * HKV * (DIM * DIM + DIM) * 4 if takes else 0)
