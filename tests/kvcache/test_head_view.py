import mlx.core as mx
import numpy as np
import pytest

from kvcache import Backend, CacheConfig, CacheError, HeadView, Rotation, TwoTierKVCache

HKV, G, DIM, SCALE = 3, 2, 32, 0.3
PERIODS = 10.0 ** np.arange(0, 4, 8 / DIM)


def _cache(backend: Backend, tokens: int = 150) -> TwoTierKVCache:
    config = CacheConfig(max_tokens=90, hot=13, block=8, sinks=3, keys="q8/q4", backend=backend)
    rotation = Rotation(periods=PERIODS[: DIM // 2], traditional=True)
    cache = TwoTierKVCache.from_config(config, rotation=rotation)
    if tokens:
        cache.append(*_drawn(2, HKV, tokens))
    return cache


def _drawn(arrays: int, heads: int, tokens: int) -> list[mx.array]:
    rng = np.random.default_rng(tokens)
    return [
        mx.array(rng.normal(size=(1, heads, tokens, DIM)).astype(np.float32)) for _ in range(arrays)
    ]


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])
def test_heads_attend_and_score_as_all_do_together(backend: Backend) -> None:
    cache = _cache(backend)
    (q,) = _drawn(1, HKV * G, 5)
    views = [HeadView(cache=cache, head=head) for head in range(HKV)]
    own = mx.split(q, HKV, axis=1)
    together = cache.attend_held(q, scale=SCALE)
    apart = [view.attend_held(each, scale=SCALE) for view, each in zip(views, own, strict=True)]
    np.testing.assert_allclose(np.array(mx.concatenate(apart, axis=1)), together, atol=1e-5)
    together = cache.scores(q, scale=SCALE)
    apart = [view.scores(each, scale=SCALE) for view, each in zip(views, own, strict=True)]
    np.testing.assert_allclose(np.array(mx.concatenate(apart, axis=1)), together, atol=1e-5)
    assert apart[0].shape == (1, G, 5, cache.size())


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])
def test_a_mask_is_of_the_heads_queries(backend: Backend) -> None:
    cache = _cache(backend, 40)
    (q,) = _drawn(1, G, 5)
    seen = mx.arange(40) == 7
    out = HeadView(cache=cache, head=2).attend_held(q, scale=SCALE, mask=seen[None])
    values = mx.broadcast_to(HeadView(cache=cache, head=2).values()[:, None, 7:8], out.shape)
    np.testing.assert_allclose(np.array(out), np.array(values), atol=1e-3)


def test_a_head_that_there_is_not_is_refused_as_soon_as_it_is_known() -> None:
    with pytest.raises(CacheError, match=f"got head {HKV}, expected one of {HKV} from 0"):
        HeadView(cache=_cache(Backend.REFERENCE), head=HKV)
    empty = _cache(Backend.REFERENCE, 0)
    view = HeadView(cache=empty, head=HKV)
    assert view.stats().held == 0
    with pytest.raises(CacheError, match="the cache is empty"):
        view.keys()
    empty.append(*_drawn(2, HKV, 2))
    for look in (view.keys, view.values, view.stats):
        with pytest.raises(CacheError, match=f"got head {HKV}"):
            look()


def test_a_head_has_its_share_of_the_bytes() -> None:
    cache = _cache(Backend.REFERENCE)
    every, one = cache.stats(), HeadView(cache=cache, head=1).stats()
    assert (one.key_bytes * HKV, one.value_bytes * HKV) == (every.key_bytes, every.value_bytes)
    assert every.key_bytes + every.value_bytes == every.held_bytes
    assert (one.total, one.cold) == (every.total, every.cold)
