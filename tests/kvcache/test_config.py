"""Sizes that no memory holds: refused with a line, by the configuration or by the cache."""

import mlx.core as mx
import pytest

from kvcache import (
    Backend,
    BlockPool,
    CacheConfig,
    CacheError,
    DynamicKVCache,
    TwoTierKVCache,
    resolve,
)
from kvcache.config import MOST_TOKENS, parse_bytes
from kvcache.tiers.plan import ModelShape


@pytest.mark.parametrize("name", ["max_tokens", "hot", "sinks", "keep", "block", "budget"])
@pytest.mark.parametrize("value", [2**63, 10**20, 10**5000], ids=["63", "20", "5000"])
def test_the_librarys_sizes_are_bounded(name: str, value: int) -> None:
    with pytest.raises(CacheError, match=rf"got .*{name}.*, expected at most \d+$"):
        CacheConfig(**{name: value})


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_is_a_positive_number(temperature: float) -> None:
    with pytest.raises(CacheError, match="expected more than 0"):
        CacheConfig(temperature=temperature)


def test_sizes_in_words_are_bounded() -> None:
    assert parse_bytes("0.5 GiB") == 2**29
    assert parse_bytes("8589934591GiB") < 2**63
    for text in ("9223372036854775809kb", "9" * 400, "9" * 5000 + "GiB"):
        with pytest.raises(CacheError, match="expected less than"):
            parse_bytes(text)


def test_a_budget_buys_no_more_tokens_than_there_are_positions() -> None:
    shape = ModelShape(layers=3, kv_heads=2, head_dim=16, context=128)
    config = CacheConfig(budget=2**62, beyond_context=True, backend=Backend.REFERENCE)
    assert MOST_TOKENS - 64 < resolve(config, shape).max_tokens <= MOST_TOKENS
    assert resolve(CacheConfig(budget=2**62), shape).max_tokens <= 128


@pytest.mark.parametrize("tier", ["hot", "sinks", "block"])
def test_a_ring_that_no_memory_holds_is_refused(tier: str) -> None:
    shape = ModelShape(layers=3, kv_heads=2, head_dim=1 << 20, context=128)
    sizes = {"hot": 5, "sinks": 3, "block": 7} | {tier: 2**30}
    config = CacheConfig(
        max_tokens=2**31 - 1,
        beyond_context=True,
        backend=Backend.CPU,
        keys="f16",
        values="f16",
        **sizes,
    )
    cache = TwoTierKVCache(resolve(config, shape).layer(0))
    tokens = mx.zeros((1, 2, 3, 1 << 20), mx.float16)
    with pytest.raises(CacheError, match="no memory for a cache of this size"):
        cache.append(tokens, tokens)
    assert cache.stats().total == 0


@pytest.mark.parametrize("pages", [MOST_TOKENS // 32 + 1, 10**12, 10**30])
def test_a_pool_of_endless_pages_is_refused(pages: int) -> None:
    with pytest.raises(CacheError, match="expected fewer pages"):
        BlockPool(pages, kv_heads=2, head_dim=16)


def test_a_pool_that_no_memory_holds_is_refused() -> None:
    with pytest.raises(CacheError, match="no memory for a cache of this size"):
        BlockPool(2**20, kv_heads=2, head_dim=1 << 24, page_tokens=3, backend=Backend.CPU)


@pytest.mark.parametrize("backend", [Backend.CPU, Backend.REFERENCE])
def test_a_buffer_has_no_more_tokens_than_there_are_positions(backend: Backend) -> None:
    cache = DynamicKVCache(2**50, backend=backend)
    tokens = mx.ones((1, 2, 3, 16), mx.float16)
    cache.append(tokens, tokens)
    with pytest.raises(CacheError, match=f"holds 3 of {MOST_TOKENS}"):
        cache.reserve(MOST_TOKENS - 2)
    assert cache.offset == 3


def test_a_buffer_that_no_memory_holds_is_refused() -> None:
    cache = DynamicKVCache(2**50, backend=Backend.CPU)
    with pytest.raises(CacheError, match="no memory for a cache of this size"):
        cache.reserve(2**30, (1, 2, 1 << 20))
    assert cache.offset == 0
