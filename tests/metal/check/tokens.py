"""A real model's tokens a second at several depths, beside mlx-lm's own network and caches.

What a cache holds does not change its speed: it is filled with made-up keys and values, in
a moment, and then the model generates. Both engines get the same weights and wait once a
token (`app.bench.engines`).
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import mlx.core as mx

from app.bench.engines import ember_case, mlx_lm_case
from app.bench.engines.case import Case, EngineName, MlxLmSetting
from kvcache import Backend, CacheConfig, make_prompt_cache
from kvcache.codecs import parse_pair
from kvcache.config import DEFAULT_KV
from kvcache.stats import sum_layers
from models import load
from models.loader import LoadedModel, activation_dtype
from tests.metal.check.rows import TokensRow
from tests.metal.check.sizes import Sizes

_PEER = "KVCache"
_PEERS = (_PEER, "QuantizedKVCache 8", "QuantizedKVCache 4")
_GROUPS = (64, 32, 128)  # mlx-lm's default first
_CHUNK = 1024
_FIRST = 4  # generated tokens that do not count: kernels are compiled, memory is found
Run = ember_case.Run | mlx_lm_case.Run


@dataclass(frozen=True, kw_only=True)
class _Speed:
    tokens_s: float
    kv_bytes: int


def run(
    model: str, backend: Backend, sizes: Sizes, tell: Callable[[str], None]
) -> Iterator[TokensRow]:
    """Each depth: mlx-lm's plain cache first, whose speed the others are told in.

    tell: of what the load says, such as matrices whose kernels were not right here.
    Raises EmberError for a model that cannot be loaded.
    """
    loaded = load(model, backend=backend)
    for note in loaded.notes:
        tell(note)
    for depth in sizes.depths:
        found = list(_measured(loaded, backend, depth, sizes))
        for engine, kv, setting, speed in found:
            yield TokensRow(
                model=loaded.name,
                engine=engine.value,
                kv=kv,
                depth=depth,
                setting=setting,
                tokens_s=speed.tokens_s,
                kv_bytes=speed.kv_bytes,
                times=speed.tokens_s / found[0][3].tokens_s,
            )


def _measured(
    loaded: LoadedModel, backend: Backend, depth: int, sizes: Sizes
) -> Iterator[tuple[EngineName, str, str, _Speed]]:
    for kv in _PEERS:
        tried = _peer(loaded, kv, depth, sizes)
        if tried:
            best = max(tried, key=lambda setting: tried[setting].tokens_s)
            yield EngineName.MLX_LM, kv, best, tried[best]
    for kv in (DEFAULT_KV, "f16"):
        yield EngineName.EMBER, kv, "", _ember(loaded, backend, kv, depth, sizes)
    if depth > sizes.window:
        speed = _ember(loaded, backend, DEFAULT_KV, depth, sizes, window=sizes.window)
        yield EngineName.EMBER, DEFAULT_KV, f"window {sizes.window}", speed


def _peer(loaded: LoadedModel, kv: str, depth: int, sizes: Sizes) -> dict[str, _Speed]:
    """By setting: every group that the model's heads are made of."""
    dim = loaded.config.head_dim
    groups = [0] if kv == _PEER else [group for group in _GROUPS if not dim % group]
    return {
        f"group_size {group}" if group else "": _mlx_lm(loaded, kv, group, depth, sizes)
        for group in groups
    }


def _case(loaded: LoadedModel, engine: EngineName, kv: str, depth: int, sizes: Sizes) -> Case:
    return Case(
        engine=engine,
        model=str(loaded.path),
        kv=kv,
        backend="auto",
        threads=0,
        depth=depth,
        pp=0,
        tg=_FIRST + sizes.generated,
    )


def _ember(
    loaded: LoadedModel,
    backend: Backend,
    kv: str,
    depth: int,
    sizes: Sizes,
    *,
    window: int | None = None,
) -> _Speed:
    """window: tokens held at most, where that is not all of them."""
    case = _case(loaded, EngineName.EMBER, kv, depth, sizes)
    keys, values = parse_pair(kv)
    base = CacheConfig(keys=keys.name, values=values.name, backend=backend, beyond_context=True)
    all_tokens = case.window + base.sinks + base.hot + 2 * base.block
    config = replace(base, max_tokens=window or all_tokens)
    caches = make_prompt_cache(loaded.model, config)
    for count in _chunks(depth):
        for cache in caches:
            cache.append(*_made_up(loaded, count))
        mx.eval([cache.pending() for cache in caches])
    one = ember_case.Run(case, loaded.model, caches, step=_CHUNK, queues=True)
    speed = _tokens_s(one, sizes.generated)
    return _Speed(tokens_s=speed, kv_bytes=sum_layers(c.stats() for c in caches).held_bytes)


def _mlx_lm(loaded: LoadedModel, kv: str, group: int, depth: int, sizes: Sizes) -> _Speed:
    case = _case(loaded, EngineName.MLX_LM, kv, depth, sizes)
    dtype = str(activation_dtype()).removeprefix("mlx.core.")
    setting = MlxLmSetting(dtype=dtype, group_size=group)
    one = mlx_lm_case.Run(case, setting, _peer_weights(str(loaded.path)), queues=True)
    for count in _chunks(depth):
        for cache in one.cache:
            cache.update_and_fetch(*_made_up(loaded, count))
        mx.eval([cache.state for cache in one.cache])
    speed = _tokens_s(one, sizes.generated)
    return _Speed(tokens_s=speed, kv_bytes=one.held_bytes)


@lru_cache(maxsize=1)
def _peer_weights(path: str) -> mlx_lm_case.Weights:
    return mlx_lm_case.read_weights(path)


def _chunks(depth: int) -> Iterator[int]:
    for at in range(0, depth, _CHUNK):
        yield min(_CHUNK, depth - at)


def _made_up(loaded: LoadedModel, count: int) -> list[mx.array]:
    shape = loaded.model.shape
    size = (1, shape.kv_heads, count, shape.head_dim)
    return [mx.random.normal(size).astype(activation_dtype()) for _ in "kv"]


def _tokens_s(one: Run, count: int) -> float:
    for _ in range(_FIRST):
        one.advance()
    began = time.perf_counter()
    for _ in range(count):
        one.advance()
    seconds = time.perf_counter() - began
    mx.clear_cache()
    return count / seconds
