"""A block's way from the hot ring to the cold one, by what a cache does when tokens come."""

from collections.abc import Iterator

import mlx.core as mx

from kvcache import Backend, CacheConfig, ModelShape, TwoTierKVCache, resolve
from tests.metal.check.rows import EncodingRow
from tests.metal.check.sizes import Shape, Sizes

_WINDOW = 2048  # tokens, so that blocks are let go too


def run(backend: Backend, sizes: Sizes) -> Iterator[EncodingRow]:
    """A row for each shape: the default codecs, a block at a time."""
    for shape in sizes.shapes:
        config = CacheConfig(backend=backend, max_tokens=_WINDOW, check_finite=False)
        seconds = _seconds(sizes, shape, config)
        yield EncodingRow(
            shape=shape.name,
            kv=f"{config.keys}/{config.values}",
            block=config.block,
            seconds=seconds,
            token_seconds=seconds / config.block,
        )


def _seconds(sizes: Sizes, shape: Shape, config: CacheConfig) -> float:
    """Of a block: each is put beside those before it."""
    model = ModelShape(layers=1, kv_heads=shape.kv_heads, head_dim=shape.dim, context=_WINDOW)
    cache = TwoTierKVCache(resolve(config, model).layer(0))
    size = (1, shape.kv_heads, config.block, shape.dim)
    keys, values = (mx.random.normal(size).astype(mx.float16) for _ in "kv")
    while not cache.stats().evicted:
        cache.append(keys, values)
        mx.eval(cache.pending())

    def write() -> list[mx.array]:
        cache.append(keys, values)
        return cache.pending()

    return sizes.timer.queued(write)
