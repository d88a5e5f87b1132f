"""`bench memory`: what a cache takes, by formula and filled with tokens.

No network runs. One layer's cache of each kind is filled, and the arrays that then live are
counted by their allocators, not by the cache; layers of a kind are alike.
"""

import gc
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from app.bench.figures.formulas import cache_room, kv_bytes, tier_bytes
from app.bench.figures.shapes import LLAMA_2_7B, TINYLLAMA, Network, network_of
from app.bench.meter import Meter
from app.bench.settings import MemorySettings
from kvcache import Backend, CacheConfig, CachePlan, EmberError, TwoTierKVCache, resolve
from kvcache.codecs import parse_pair

_CHUNK = 1024
# Elements filled per second, expected.
_FILL_RATE = 4e7


@dataclass(frozen=True, kw_only=True)
class MemoryRow:
    """One model's cache of one kind at one window.

    formula_bytes: a full cache. held_bytes, allocated_bytes: the filled cache's own
    figures; live_bytes: what the allocators of numpy and MLX say that it takes. All
    for all layers, None where the cache was too large to fill.
    fp16_bytes: as many tokens in fp16.
    bits: per element of the cold tier, all-in.
    fits_*: tokens that fit beside the weights in so much memory, whatever the window.
    """

    model: str
    kv: str
    context: int
    formula_bytes: int
    held_bytes: int | None
    allocated_bytes: int | None
    live_bytes: int | None
    fp16_bytes: int
    bits: float
    trained_context: int
    fits_8gib: int
    fits_16gib: int
    fits_24gib: int


def networks(settings: MemorySettings) -> list[Network]:
    """The models that figures are given for."""
    return [network_of(settings.model), TINYLLAMA, LLAMA_2_7B]


def expected_seconds(settings: MemorySettings) -> float:
    """Of the whole section."""
    found = networks(settings)
    return sum(
        _fill_seconds(network, kv, context, settings)
        for network in found
        for kv in settings.kv
        for context in settings.contexts
    )


def run(settings: MemorySettings, meter: Meter) -> Iterator[MemoryRow]:
    """A row for each model, kind of cache and window."""
    for network in networks(settings):
        for kv in settings.kv:
            seconds = sum(_fill_seconds(network, kv, n, settings) for n in settings.contexts)
            with meter.step(f"memory of {network.name}, {kv}", seconds):
                for context in settings.contexts:
                    yield _row(network, kv, context, settings)


def plan_of(network: Network, kv: str, context: int, backend: str) -> CachePlan:
    """The plan of a window of `context`, however far the model was trained."""
    keys, values = parse_pair(kv)
    config = CacheConfig(
        max_tokens=context,
        keys=keys.name,
        values=values.name,
        backend=Backend(backend),
        beyond_context=True,
    )
    return resolve(config, network.shape)


def _row(network: Network, kv: str, context: int, settings: MemorySettings) -> MemoryRow:
    plan = plan_of(network, kv, context, settings.backend)
    filled = _filled(plan, settings.filled_bytes)
    held, allocated, live = filled or (None, None, None)
    fits = [_fitting(network, plan.config, memory << 30) for memory in (8, 16, 24)]
    return MemoryRow(
        model=network.name,
        kv=kv,
        context=context,
        formula_bytes=round(tier_bytes(network, plan.kinds, cold_bits=plan.cold_bits)),
        held_bytes=held,
        allocated_bytes=allocated,
        live_bytes=live,
        fp16_bytes=round(kv_bytes(network, plan.max_tokens)),
        bits=plan.cold_bits,
        trained_context=network.context,
        fits_8gib=fits[0],
        fits_16gib=fits[1],
        fits_24gib=fits[2],
    )


def _fitting(network: Network, config: CacheConfig, memory_bytes: int) -> int:
    """Tokens that the plan of what the weights leave holds; 0 where they leave too little."""
    room = cache_room(network, memory_bytes)
    fields = config.as_dict() | {"max_tokens": None, "budget": max(room, 1)}
    try:
        return resolve(CacheConfig.from_dict(fields), network.shape).max_tokens
    except EmberError:
        return 0


def _filled(plan: CachePlan, most: int) -> tuple[int, int, int] | None:
    """Held, allocated and live bytes of a full cache; None past `most` bytes a layer."""
    if plan.layer_bytes > most:
        return None
    totals = np.zeros(3, np.int64)
    for sizes, layers in plan.kinds.items():
        totals += layers * np.array(_filled_layer(plan, plan.layer_sizes.index(sizes)))
    held, allocated, live = map(int, totals)
    return held, allocated, live


def _filled_layer(plan: CachePlan, index: int) -> tuple[int, int, int]:
    """Held, allocated and live bytes of one layer's full cache."""
    tokens = _tokens(plan)
    tracemalloc.start()
    cache = TwoTierKVCache(plan.layer(index))
    _fill(cache, tokens, cache.plan.sizes.max_tokens)
    full, stats = _live(), cache.stats()
    # What was made on the way and stays, such as the codecs' tables, is not the cache's.
    del cache
    live = full - _live()
    tracemalloc.stop()
    return stats.held_bytes, stats.allocated_bytes, live


def _tokens(plan: CachePlan) -> mx.array:
    shape = (1, plan.shape.kv_heads, min(_CHUNK, plan.max_tokens), plan.shape.head_dim)
    tokens = mx.random.normal(shape, key=mx.random.key(3))
    mx.eval(tokens)
    return tokens


def _fill(cache: TwoTierKVCache, tokens: mx.array, count: int) -> None:
    """Append `count` tokens in chunks, in place of a prompt."""
    for start in range(0, count, tokens.shape[2]):
        chunk = tokens[:, :, : min(tokens.shape[2], count - start)]
        cache.append(chunk, chunk)
        mx.eval(cache.pending())


def _live() -> int:
    """Bytes of all live arrays: numpy tells tracemalloc of its own, MLX counts its own."""
    gc.collect()
    traced, _ = tracemalloc.get_traced_memory()
    return traced + mx.get_active_memory()


def _fill_seconds(network: Network, kv: str, context: int, settings: MemorySettings) -> float:
    """Expected, of one row."""
    elements = 2 * network.kv_heads * network.head_dim * context
    bits = 16 if kv == "f16" else 5
    if elements * bits / 8 > settings.filled_bytes:
        return 0.01
    return 0.01 + elements / _FILL_RATE / (10 if kv == "f16" else 1)
