import mlx.core as mx
import numpy as np
import pytest

from kvcache import Backend, CacheConfig, CacheError, ModelShape, RowsKVCache, resolve
from kvcache.prompt_cache import from_plan, rows_from_plan

SHAPE = ModelShape(layers=1, kv_heads=2, head_dim=16, context=500)
PADDING = [0, 9, 33]


def _draw(length: int, heads: int, seed: int) -> mx.array:
    return mx.random.normal((3, heads, length, 16), key=mx.random.key(seed))


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])
def test_each_row_is_a_cache_of_its_own(backend: Backend) -> None:
    config = CacheConfig(max_tokens=90, hot=16, block=16, backend=backend)
    plan = resolve(config, SHAPE)
    (batch,) = rows_from_plan(plan, None, left_padding=PADDING)
    alone = [from_plan(plan, None)[0] for _ in PADDING]
    start = 0
    for step in (20, 20, 1, 70, 1):
        q, k, v = _draw(step, 6, start), _draw(step, 2, start + 1), _draw(step, 2, start + 2)
        out = np.asarray(batch.attend(q, k, v, scale=0.3))
        for row, cache in enumerate(alone):
            skip = min(max(0, PADDING[row] - start), step)
            assert not out[row, :, :skip].any()
            if skip < step:
                parts = (x[row : row + 1, :, skip:] for x in (q, k, v))
                want = np.asarray(cache.attend(*parts, scale=0.3))
                np.testing.assert_allclose(out[row : row + 1, :, skip:], want, atol=1e-5)
        start += step
    assert batch.offset == start
    total = batch.stats()
    assert total.total == sum(start - padding for padding in PADDING)
    assert total.held_bytes == sum(cache.stats().held_bytes for cache in alone)
    batch.filter([2, 0])
    assert [row.offset for row in batch.rows] == [start - 33, start]
    assert batch.extract(0).offset == start - 33


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])
def test_a_row_that_is_kept_twice_goes_two_ways(backend: Backend) -> None:
    config = CacheConfig(max_tokens=90, hot=16, block=16, backend=backend)
    plan = resolve(config, SHAPE)
    (batch,) = rows_from_plan(plan, None, left_padding=PADDING)
    batch.filter([0, 1, 1])  # nothing is held yet
    q, k, v = (_draw(57, heads, seed) for heads, seed in ((6, 1), (2, 2), (2, 3)))
    batch.attend(q, k, v, scale=0.3)
    batch.filter([2, 0, 2])
    alone = [from_plan(plan, None)[0] for _ in PADDING]
    for cache, row, skip in zip(alone, (2, 0, 2), (9, 0, 9), strict=True):
        cache.attend(*(x[row : row + 1, :, skip:] for x in (q, k, v)), scale=0.3)
    for step in (1, 20):
        q, k, v = (_draw(step, heads, 10 + heads + step) for heads in (6, 2, 2))
        out = np.asarray(batch.attend(q, k, v, scale=0.3))
        for row, cache in enumerate(alone):
            want = cache.attend(*(x[row : row + 1] for x in (q, k, v)), scale=0.3)
            np.testing.assert_allclose(out[row : row + 1], np.asarray(want), atol=1e-5)
    assert [row.offset for row in batch.rows] == [69, 78, 69]


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])
def test_padding_may_be_anything(backend: Backend) -> None:
    (batch,) = rows_from_plan(
        resolve(CacheConfig(backend=backend), SHAPE), None, left_padding=[0, 3]
    )
    hidden = (np.arange(7) < 3) & (np.arange(2).reshape(2, 1) == 1)
    k = mx.array(np.where(hidden[:, None, :, None], np.inf, _draw(7, 2, 2)[:2]))
    batch.attend(_draw(7, 6, 1)[:2], k, k, scale=1.0)
    assert [row.offset for row in batch.rows] == [7, 4]


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])
def test_what_does_not_fit_is_refused(backend: Backend) -> None:
    plan = resolve(CacheConfig(backend=backend), SHAPE)
    (batch,) = rows_from_plan(plan, None, left_padding=[0, 0])
    with pytest.raises(CacheError, match="expected 2 batch rows"):
        batch.attend(_draw(1, 6, 1), _draw(1, 2, 2), _draw(1, 2, 3), scale=1.0)
    # Refused before the first row has appended.
    k = _draw(1, 2, 2)[:2]
    for q, v in ((_draw(1, 6, 1)[:1], k), (_draw(1, 6, 1)[:2], k[:1]), (k, _draw(2, 2, 3)[:2])):
        with pytest.raises(CacheError):
            batch.attend(q, k, v, scale=1.0)
        assert (batch.offset, batch.stats().total) == (0, 0)
    for row in (0, 1):
        spoiled = mx.array(np.where(np.arange(2).reshape(2, 1, 1, 1) == row, np.nan, k))
        for keys, values in ((spoiled, k), (k, spoiled)):
            with pytest.raises(CacheError, match="NaN"):
                batch.attend(_draw(1, 6, 1)[:2], keys, values, scale=1.0)
            assert (batch.offset, batch.stats().total) == (0, 0)
            assert batch.stats().held_bytes == 0
    for rows in ([2], [-1], []):
        with pytest.raises(CacheError, match="at least one of the cache's 2"):
            batch.filter(rows)
    mask = mx.ones((1, 1), mx.bool_)
    with pytest.raises(CacheError, match="take no mask array"):
        batch.attend(_draw(1, 6, 1), _draw(1, 2, 2), _draw(1, 2, 3), scale=1.0, mask=mask)
    with pytest.raises(CacheError, match="got 0 rows and 1 paddings"):
        RowsKVCache([], [0])


def test_a_kernel_is_lent_the_memory_of_all_rows_behind_their_padding() -> None:
    plan = resolve(CacheConfig(backend=Backend.CPU), SHAPE)
    (batch,) = rows_from_plan(plan, None, left_padding=PADDING)
    for length in (30, 2):
        batch.attend(_draw(length, 6, 1), _draw(length, 2, 2), _draw(length, 2, 3), scale=1.0)
        assert batch.steps((3, 2, 16), 5) == []
    batch.attend(_draw(1, 6, 1), _draw(1, 2, 2), _draw(1, 2, 3), scale=1.0)
    assert batch.steps((2, 2, 16), 5) == []
    steps = batch.steps((3, 2, 16), 5)
    assert [step.before.total for step in steps] == [33, 24, 0]
    assert len(batch.lend(steps)) == 3
    assert batch.lend(steps[:2]) == []
    batch.commit(steps)
    assert batch.offset == 38
    assert [row.offset for row in batch.rows] == [38, 29, 5]
