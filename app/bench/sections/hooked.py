"""`bench hooked`: ember's caches in mlx-lm's own network, beside mlx-lm's own.

The file's weights in mlx-lm's Llama, decoded to float32, which is quickest on a CPU. All but the
last step of a prompt is made up: random keys and values, the same for every way. The ways
generate in turns, and their fastest tokens count. Nothing is let go. The last way attends to
nothing, and says what any cache could gain at most.
"""

import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import create_attention_mask

from app.bench.engines import mlx_lm_case
from app.bench.meter import Meter
from app.bench.settings import HookedSettings
from kvcache import Backend, CacheConfig, TwoTierKVCache, make_prompt_cache, mlx_lm

_LOADING_SECONDS = 3.0
_STEP_SECONDS = 6.0  # of a prompt, with all that is made up before it
_TOKEN_SECONDS = 0.17
# That read a prompt's step. They run one after another, and so take as much as all would.
_READING = 2
_STRIDE = 7919
_ATTENTION = "scaled_dot_product_attention"


class Way(Enum):
    """OWN: mlx-lm's KVCache. FETCHED: ours, as any network of mlx-lm's uses it. INSTALLED: with
    attention that reads its tiers. NONE: mlx-lm's, and zeros for what attention gives."""

    OWN = "mlx-lm's KVCache"
    FETCHED = "ember's, fetched"
    INSTALLED = "ember's, installed"
    NONE = "no attention"

    @property
    def is_own(self) -> bool:
        """Whether the cache is mlx-lm's."""
        return self in (Way.OWN, Way.NONE)


@dataclass(frozen=True, kw_only=True)
class HookedRow:
    """One way at one depth.

    tps: of the fastest token of `reps` turns. times: that, over mlx-lm's own. kv_bytes: what the
    caches have allocated, decoded windows included. step_bytes: the most that MLX and Python
    took beside them during a step of a prompt, the last; 0 where there was none.
    """

    way: str
    model: str
    backend: str
    depth: int
    tps: float
    times: float
    kv_bytes: int
    step_bytes: int
    step_tokens: int
    reps: int


def expected_seconds(settings: HookedSettings) -> float:
    """Of the whole section."""
    return _LOADING_SECONDS + sum(_depth_seconds(settings, depth) for depth in settings.depths)


def run(settings: HookedSettings, meter: Meter) -> Iterator[HookedRow]:
    """A row for each way and depth."""
    with meter.step("hooked: load", _LOADING_SECONDS):
        weights = mlx_lm_case.unquantized(mlx_lm_case.read_weights(settings.model))
        network = mlx_lm_case.network(weights, mx.float32)
    for depth in settings.depths:
        with meter.step(f"hooked: depth {depth}", _depth_seconds(settings, depth)):
            yield from _rows(network, weights.vocabulary, depth, settings)


def _depth_seconds(settings: HookedSettings, depth: int) -> float:
    reading = _STEP_SECONDS if depth else 0.0
    return len(Way) * (reading + settings.reps * settings.tg * _TOKEN_SECONDS)


def _rows(
    network: nn.Module, vocabulary: int, depth: int, settings: HookedSettings
) -> Iterator[HookedRow]:
    ids = [(at * _STRIDE + 11) % vocabulary for at in range(min(depth, settings.step))]
    caches, steps = dict[Way, list[Any]](), dict[Way, int]()
    for way in Way:
        with _attention(way):
            caches[way] = _caches(network, way, depth, settings)
            _make_up(network, caches[way], depth, len(ids))
            steps[way] = _read(network, ids, caches[way]) if ids else 0
    fastest = dict.fromkeys(Way, float("inf"))
    for _ in range(settings.reps):
        for way in Way:
            with _attention(way):
                fastest[way] = min(fastest[way], *_tokens(network, caches[way], settings.tg))
    for way in Way:
        yield HookedRow(
            way=way.value,
            model=Path(settings.model).stem,
            backend="mlx" if way.is_own else caches[way][0].plan.backend.value,
            depth=depth,
            tps=1 / fastest[way],
            times=fastest[Way.OWN] / fastest[way],
            kv_bytes=sum(cache.nbytes for cache in caches[way]),
            step_bytes=steps[way],
            step_tokens=settings.step,
            reps=settings.reps,
        )


@contextmanager
def _attention(way: Way) -> Iterator[None]:
    """MLX's attention, or ours, or none, as a way asks for."""
    stock = mx.fast.scaled_dot_product_attention
    if way is Way.INSTALLED:
        mlx_lm.install()
    elif way is Way.NONE:
        setattr(mx.fast, _ATTENTION, _nothing)
    try:
        yield
    finally:
        mlx_lm.uninstall()
        setattr(mx.fast, _ATTENTION, stock)


def _nothing(q: mx.array, k: mx.array, v: mx.array, **_: Any) -> mx.array:
    """Zeros, once all that attention takes is there."""
    zeros: mx.array = mx.depends(mx.zeros_like(q), [q, k, v])
    return zeros


def _caches(network: nn.Module, way: Way, depth: int, settings: HookedSettings) -> list[Any]:
    if way.is_own:
        from mlx_lm.models.cache import KVCache

        return [KVCache() for _ in network.layers]
    base = CacheConfig(backend=Backend(settings.backend), beyond_context=True)
    # Whole blocks, so that nothing is let go.
    most = depth + settings.reps * settings.tg + base.sinks + base.hot + 2 * base.block
    return list(make_prompt_cache(network, replace(base, max_tokens=most)))


def _make_up(network: nn.Module, caches: list[Any], depth: int, step: int) -> None:
    """Fill up to a depth with random keys and values, but for a step where it is read."""
    args = network.args
    heads, dim = args.num_key_value_heads, args.hidden_size // args.num_attention_heads
    for layer, cache in enumerate(caches):
        tokens = depth - step if layer < _READING else depth
        if not tokens:
            continue
        shape = 1, heads, tokens, dim
        keys, values = (mx.random.normal(shape, key=mx.random.key(2 * layer + at)) for at in (0, 1))
        fill = cache.append if isinstance(cache, TwoTierKVCache) else cache.update_and_fetch
        fill(keys, values)
        mx.eval(_pending(cache))


def _pending(cache: Any) -> Any:
    """What may still have to be computed of it."""
    return cache.pending() if isinstance(cache, TwoTierKVCache) else cache.state


def _read(network: nn.Module, ids: list[int], caches: list[Any]) -> int:
    """Bytes that a step of a prompt takes beside the caches, at most."""
    mx.clear_cache()
    mx.reset_peak_memory()
    tracemalloc.start()
    hidden = network.model.embed_tokens(mx.array([ids]))
    mask = create_attention_mask(hidden, caches[0])
    for layer, cache in zip(network.layers[:_READING], caches, strict=False):
        hidden = layer(hidden, mask, cache=cache)
    mx.eval(hidden, [_pending(cache) for cache in caches])
    del hidden
    now, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return int(mx.get_peak_memory() - mx.get_active_memory() + most - now)


def _tokens(network: nn.Module, caches: list[Any], count: int) -> Iterator[float]:
    """Seconds of each of `count` tokens, each the most likely after the one before."""
    token = mx.array([[1]])
    for _ in range(count):
        began = time.perf_counter()
        token = mx.argmax(network(token, caches)[:, -1], axis=-1)[:, None]
        mx.eval(token)
        yield time.perf_counter() - began
