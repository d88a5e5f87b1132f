"""DynamicKVCache's buffer: written in place, by one operation, or by a kernel of one's own."""

import io
import re

import mlx.core as mx
import numpy as np
import pytest

from kvcache import Backend, CacheError, DynamicKVCache, HotDtype
from kvcache.cpu_memory import storable
from tests.kvcache.cache_inputs import (
    BACKENDS,
    DIM,
    HKV,
    full_precision,
    needs_kernels,
    queries,
    tokens,
)


@needs_kernels
@pytest.mark.parametrize("dtype", list(HotDtype))
def test_a_kernel_writes_keys_and_values_in_place_and_advances(dtype: HotDtype) -> None:
    written, appended = DynamicKVCache(600, dtype=dtype), DynamicKVCache(600, dtype=dtype)
    k, v = tokens(300)
    written.reserve(4, shape=(1, HKV, DIM))
    before = written.buffer()
    for start, stop in ((0, 1), (1, 4), (4, 300)):
        written.reserve(stop - start)
        buffer = written.buffer()
        assert isinstance(buffer, np.ndarray)
        for part, new in zip(buffer, (k, v), strict=True):
            part[:, :, start:stop] = storable(new[:, :, start:stop], dtype)
        assert written.offset == start
        written.advance(stop - start)
        appended.append(k[:, :, start:stop], v[:, :, start:stop])
        if stop < 256:
            assert buffer is before
    assert mx.array_equal(written.keys(), appended.keys())
    assert mx.array_equal(written.values(), appended.values())
    q = queries(3)
    assert mx.array_equal(written.attend_held(q, scale=0.5), appended.attend_held(q, scale=0.5))


def test_a_kernel_hands_back_the_array_it_wrote() -> None:
    cache = DynamicKVCache(600, dtype=HotDtype.F32, backend=Backend.REFERENCE)
    k, v = tokens(7)
    cache.append(k[:, :, :5], v[:, :, :5])
    cache.reserve(2)
    buffer = cache.buffer()
    assert isinstance(buffer, mx.array)
    assert buffer.shape == (2, 1, HKV, 256, DIM)
    new = mx.stack([k[:, :, 5:], v[:, :, 5:]])
    written = mx.slice_update(buffer, new, mx.array([0, 0, 0, 5, 0]), (0, 1, 2, 3, 4))
    with pytest.raises(CacheError, match=r"got a written buffer \(2, 1, 3, 255, 16\)"):
        cache.advance(2, written=written[:, :, :, 1:])
    assert cache.offset == 5
    cache.advance(2, written=written)
    assert mx.array_equal(cache.keys(), k)
    assert mx.array_equal(cache.values(), v)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", list(HotDtype))
def test_keys_and_values_in_one_array_are_written_at_once(
    backend: Backend, dtype: HotDtype
) -> None:
    apart, joined = (DynamicKVCache(600, dtype=dtype, backend=backend) for _ in range(2))
    k, v = tokens(300)
    for start, stop in ((0, 1), (1, 4), (4, 257), (257, 300)):
        span = slice(start, stop)
        apart.append(k[:, :, span], v[:, :, span])
        joined.append_joined(mx.stack([k[:, :, span], v[:, :, span]]))
    assert joined.offset == 300
    assert mx.array_equal(joined.keys(), apart.keys())
    assert mx.array_equal(joined.values(), apart.values())


def test_one_array_is_written_by_one_operation() -> None:
    """One launch on a GPU: MLX records a single slice update and no copy before it."""
    cache = DynamicKVCache(600, dtype=HotDtype.F32, backend=Backend.REFERENCE)
    cache.append(*tokens(2))
    kv = mx.stack(tokens(3))
    mx.eval(kv, cache.pending())
    cache.append_joined(kv)
    with io.StringIO() as graph:
        mx.export_to_dot(graph, *cache.pending())
        drawn = graph.getvalue()
    assert re.findall(r'label ="(\w+)"', drawn) == ["SliceUpdate"]


def test_what_is_not_keys_and_values_in_one_array_is_refused() -> None:
    cache = full_precision()
    k, v = tokens(3)
    for bad in (k, mx.stack([k, v, v])):
        with pytest.raises(CacheError, match=r"expected keys, then values: \[2, B, Hkv, L, D\]"):
            cache.append_joined(bad)
    with pytest.raises(CacheError, match="301 more tokens do not fit"):
        full_precision(300).append_joined(mx.stack(tokens(301)))
    assert (cache.offset, cache.empty()) == (0, True)


def test_reserving_and_advancing_past_the_room_is_refused() -> None:
    cache = full_precision(300)
    with pytest.raises(CacheError, match="give reserve a shape"):
        cache.reserve(1)
    with pytest.raises(CacheError, match="the cache is empty"):
        cache.buffer()
    cache.reserve(10, shape=(1, HKV, DIM))
    with pytest.raises(CacheError, match=r"got shape \(2, 3, 16\), but the cache holds"):
        cache.reserve(10, shape=(2, HKV, DIM))
    with pytest.raises(CacheError, match="301 more tokens do not fit: the cache holds 0 of 300"):
        cache.reserve(301)
    for count in (257, -1):
        with pytest.raises(CacheError, match=f"got {count} tokens to count, but 256 have room"):
            cache.advance(count)
    assert (cache.offset, cache.empty()) == (0, True)


@needs_kernels
def test_plain_memory_takes_no_arrays_back() -> None:
    cache = full_precision()
    cache.append(*tokens(2))
    with pytest.raises(CacheError, match="written in place: give no arrays"):
        cache.advance(0, written=mx.stack([cache.keys(), cache.values()]))
