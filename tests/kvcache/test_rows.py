import mlx.core as mx
import numpy as np
import pytest

from kvcache import (
    Backend,
    CacheConfig,
    CacheError,
    ModelShape,
    RowsKVCache,
    resolve,
)
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
    assert batch.positions == tuple(start - padding for padding in PADDING)
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
        assert (batch.positions, batch.stats().total) == ((0, 0), 0)
    for row in (0, 1):
        spoiled = mx.array(np.where(np.arange(2).reshape(2, 1, 1, 1) == row, np.nan, k))
        for keys, values in ((spoiled, k), (k, spoiled)):
            with pytest.raises(CacheError, match="NaN"):
                batch.attend(_draw(1, 6, 1)[:2], keys, values, scale=1.0)
            assert (batch.positions, batch.stats().total) == ((0, 0), 0)
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
    assert batch.positions == (38, 29, 5)
    assert np.asarray(batch.offset).tolist() == [38, 29, 5]
    assert [row.offset for row in batch.rows] == [38, 29, 5]


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])
def test_padding_behind_a_row_is_never_held(backend: Backend) -> None:
    plan = resolve(CacheConfig(max_tokens=90, hot=16, block=16, backend=backend), SHAPE)
    lengths, alone = [70, 5, 38], [from_plan(plan, None)[0] for _ in range(3)]
    batch = RowsKVCache.of([from_plan(plan, None)[0] for _ in range(3)])
    batch.prepare(lengths=lengths, right_padding=[0, 65, 32])
    start = 0
    for step in (30, 40):
        q, k, v = (_draw(step, heads, start + heads) for heads in (6, 2, 2))
        out = np.asarray(batch.attend(q, k, v, scale=0.3))
        for row, cache in enumerate(alone):
            own = max(0, min(step, lengths[row] - start))
            assert not out[row, :, own:].any()
            if own:
                parts = (x[row : row + 1, :, :own] for x in (q, k, v))
                want = np.asarray(cache.attend(*parts, scale=0.3))
                np.testing.assert_array_equal(out[row : row + 1, :, :own], want)
        start += step
    batch.finalize()
    assert batch.positions == tuple(lengths)
    q, k, v = (_draw(1, heads, heads) for heads in (6, 2, 2))
    out = np.asarray(batch.attend(q, k, v, scale=0.3))
    for row, cache in enumerate(alone):
        want = np.asarray(cache.attend(*(x[row : row + 1] for x in (q, k, v)), scale=0.3))
        np.testing.assert_array_equal(out[row : row + 1], want)


@pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])
def test_rows_join_and_leave(backend: Backend) -> None:
    plan = resolve(CacheConfig(max_tokens=90, hot=16, block=16, backend=backend), SHAPE)
    given = [from_plan(plan, None)[0] for _ in range(3)]
    for cache, length in zip(given, (0, 40, 88), strict=True):
        if length:
            cache.append(_draw(length, 2, length)[:1], _draw(length, 2, 1)[:1])
    batch, late = RowsKVCache.of(given[:2]), RowsKVCache.of(given[2:])
    batch.extend(late)
    assert batch.positions == (0, 40, 88)
    for cache in given:
        cache.clear()  # the batch has its own
    assert [row.size() for row in batch.rows] == [0, 40, 72]
    out = batch.extract(1)
    q, k, v = (_draw(1, heads, heads) for heads in (6, 2, 2))
    batch.attend(q, k, v, scale=0.3)
    assert (out.offset, *batch.positions) == (40, 1, 41, 89)
    batch.filter([2, 0])
    assert [row.offset for row in batch.rows] == [89, 1]
    assert (batch.size(), batch.empty(), batch.is_trimmable()) == (73, False, False)


def test_what_is_told_of_other_rows_is_refused() -> None:
    plan = resolve(CacheConfig(), SHAPE)
    (batch,) = rows_from_plan(plan, None, left_padding=[0, 0])
    with pytest.raises(CacheError, match="lengths of 1 rows, expected 2"):
        batch.prepare(lengths=[3])
    with pytest.raises(CacheError, match="left_padding of 3 rows, expected 2"):
        batch.prepare(left_padding=[1, 2, 3])
    batch.prepare(lengths=[3, 1])
    with pytest.raises(CacheError, match="call finalize before extend"):
        batch.extend(rows_from_plan(plan, None, left_padding=[0])[0])
