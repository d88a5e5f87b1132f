import mlx.core as mx
import numpy as np
import pytest

from kvcache import Backend, HotDtype
from kvcache.unencoded.page_store import PageShape, first_of_run, make_pages

SHAPE = PageShape(pages=7, page_tokens=3, kv_heads=2, head_dim=5)
BACKENDS = [Backend.AUTO.resolve(), Backend.REFERENCE]


def _tokens(batch: int, count: int) -> tuple[mx.array, mx.array]:
    rng = np.random.default_rng(count)
    k, v = rng.normal(size=(2, batch, 2, count, 5)).astype(np.float16)
    return mx.array(k), mx.array(v)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", list(HotDtype))
@pytest.mark.parametrize(
    ("table", "spans"),
    [
        ([2, 3, 4], [range(6, 14)]),
        ([4, 1, 5], [range(12, 15), range(3, 6), range(15, 17)]),
        ([6, 5, 0], [range(18, 21), range(15, 18), range(2)]),
    ],
)
def test_reads_what_was_written(
    table: list[int], spans: list[range], dtype: HotDtype, backend: Backend
) -> None:
    store = make_pages(SHAPE, dtype, backend)
    k, v = _tokens(1, 8)
    store.write(spans, k, v)
    for got, want in zip(store.read([table], 8), (k, v), strict=True):
        assert got.dtype == dtype.mx
        assert mx.array_equal(got, want.astype(dtype.mx))


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_a_batch_lie_in_their_own_pages(backend: Backend) -> None:
    store = make_pages(SHAPE, HotDtype.F16, backend)
    k, v = _tokens(2, 4)
    store.write([range(3), range(9, 10), range(15, 18), range(6, 7)], k, v)
    keys, values = store.read([[0, 3], [5, 2]], 4)
    assert mx.array_equal(keys, k)
    assert mx.array_equal(values, v)


@pytest.mark.parametrize("backend", BACKENDS)
def test_prewarming_leaves_other_pages_alone(backend: Backend) -> None:
    store = make_pages(SHAPE, HotDtype.F16, backend)
    k, v = _tokens(1, 3)
    store.write([range(3)], k, v)
    store.prewarm(1, 7)
    assert mx.array_equal(store.read([[0]], 3)[0], k)


def test_page_bytes_count_keys_and_values() -> None:
    assert SHAPE.page_bytes(HotDtype.F32) * 7 == np.zeros(SHAPE.array, np.float32).nbytes


@pytest.mark.parametrize(
    ("table", "first"), [([4], 4), ([2, 3, 4], 2), ([2, 4], None), ([3, 2], None), ([1, 1], None)]
)
def test_runs(table: list[int], first: int | None) -> None:
    assert first_of_run(table) == first
