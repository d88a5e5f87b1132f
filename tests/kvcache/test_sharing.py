"""Copies of a cache: what they share is held once, and each goes on as if it were alone."""

import gc
import random
from copy import deepcopy

import mlx.core as mx
import numpy as np
import pytest

from kvcache import (
    Backend,
    CacheConfig,
    CacheError,
    ModelShape,
    RowsKVCache,
    SharedBudget,
    TwoTierKVCache,
    resolve,
)
from kvcache.prompt_cache import from_plan
from kvcache.rows import allocated_bytes

HOT, BLOCK, DIM = 48, 32, 64
SHAPE = ModelShape(layers=1, kv_heads=2, head_dim=DIM, context=3000)
KINDS = [
    (backend, keys, values)
    for backend in (Backend.CPU, Backend.REFERENCE)
    for keys, values in (("hkivi4", "turbo3u"), ("f16", "f16"))
]


def _cache(backend: Backend, keys: str, values: str, tokens: int = 320) -> TwoTierKVCache:
    config = CacheConfig(
        max_tokens=tokens, hot=HOT, block=BLOCK, keys=keys, values=values, backend=backend
    )
    return from_plan(resolve(config, SHAPE), None)[0]


def _feed(cache: TwoTierKVCache, seed: int, steps: tuple[int, ...]) -> list[np.ndarray]:
    """What tokens see that are drawn from a seed."""
    seen = []
    for at, length in enumerate(steps):
        q, k, v = (
            mx.random.normal((1, heads, length, DIM), key=mx.random.key(1000 * seed + 10 * at + i))
            for i, heads in enumerate((4, 2, 2))
        )
        seen.append(np.asarray(cache.attend(q, k, v, scale=0.2)))
    return seen


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0].value}-{kind[1]}")
def test_forks_go_on_as_if_alone(kind: tuple[Backend, str, str]) -> None:
    """Past the window, so that blocks which others still hold are overwritten."""
    prefix, rest = (200, 33, 1), (1, 40, 1, 1, 130, 7, 200, 1)
    parent = _cache(*kind)
    _feed(parent, 0, prefix)
    forks = [deepcopy(parent) for _ in range(4)]
    forks.append(deepcopy(forks[0]))
    got = [list[np.ndarray]() for _ in forks]
    # By turns, and the parent amid them.
    for at in range(len(rest)):
        for seed, fork in enumerate(forks, 1):
            got[seed - 1] += _feed(fork, 50 * seed + at, rest[at : at + 1])
        _feed(parent, 7 + at, (3,))
    for seed, own in enumerate(got, 1):
        alone = _cache(*kind)
        _feed(alone, 0, prefix)
        for at, seen in enumerate(own):
            (want,) = _feed(alone, 50 * seed + at, rest[at : at + 1])
            np.testing.assert_array_equal(seen, want)
        assert forks[seed - 1].stats() == alone.stats()
        for held, wanted in zip(forks[seed - 1].state, alone.state, strict=True):
            np.testing.assert_array_equal(np.asarray(held), np.asarray(wanted))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0].value}-{kind[1]}")
@pytest.mark.parametrize("first", ["parent", "children"])
def test_who_goes_first_does_not_matter(kind: tuple[Backend, str, str], first: str) -> None:
    parent, alone = _cache(*kind), _cache(*kind)
    for cache in (parent, alone):
        _feed(cache, 0, (260,))
    left, gone = deepcopy(parent), deepcopy(parent)
    _feed(gone, 9, (5, 90))
    if first == "parent":
        del parent, gone
    else:
        left, _ = parent, left
        del parent, gone
    gc.collect()
    for got, want in zip(_feed(left, 3, (1, 99, 1)), _feed(alone, 3, (1, 99, 1)), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("backend", [Backend.CPU, Backend.REFERENCE])
def test_a_prefix_is_held_once(backend: Backend) -> None:
    parent = _cache(backend, "hkivi4", "turbo3u", tokens=2600)
    _feed(parent, 0, (2000,))
    one = allocated_bytes([parent])
    assert parent.stats().held_bytes < one <= parent.nbytes
    forks = [deepcopy(parent) for _ in range(8)]
    assert allocated_bytes([parent, *forks]) == one
    for seed, fork in enumerate(forks, 1):
        _feed(fork, seed, (1, 1, 1))
    hot = parent.plan.sizes.hot_memory * parent.plan.token_bytes((1, 2, DIM))
    assert allocated_bytes([parent, *forks]) <= one + 8 * hot
    if backend is Backend.CPU:
        for seed, fork in enumerate(forks, 1):
            _feed(fork, seed, (1,) * BLOCK)  # a block of its own
        block = parent.plan.block_bytes((1, 2, DIM))
        assert allocated_bytes(forks) <= one + 8 * (hot + 2 * block)
    rows = RowsKVCache.of([parent] * 3)
    assert rows.nbytes == rows.stats().allocated_bytes == one
    with pytest.raises(CacheError, match="caches"):
        allocated_bytes([5])  # type: ignore[list-item]


def test_what_was_written_is_counted_where_it_lies() -> None:
    empty = _cache(Backend.CPU, "hkivi4", "turbo3u")
    assert (empty.places(), allocated_bytes([empty])) == ({}, 0)
    copied = deepcopy(empty)
    _feed(copied, 1, (100,))
    assert copied.stats().held_bytes < allocated_bytes([empty, copied]) <= copied.nbytes


@pytest.mark.parametrize("seed", range(6))
def test_any_family_of_copies(seed: int) -> None:
    """Copies of copies that grow, are taken back, and die at random, against lone caches."""
    chance = random.Random(seed)
    kind = KINDS[seed % 2]
    live: list[tuple[TwoTierKVCache, list[tuple[int, int]]]] = [(_cache(*kind), [])]
    for step in range(60):
        at = chance.randrange(len(live))
        cache, said = live[at]
        match chance.choice(("grow", "grow", "grow", "copy", "back", "die")):
            case "grow":
                length = chance.choice((1, 2, 15, 16, 17, 47, 90))
                _feed(cache, step, (length,))
                said.append((step, length))
            case "copy" if len(live) < 6:
                live.append((deepcopy(cache), [*said]))
            case "back":
                gone = cache.rewind(min(3, cache.ledger.hot))
                said.append((-1, gone))
            case "die" if len(live) > 1:
                live.pop(at)
    for cache, said in live:
        alone = _cache(*kind)
        for step, length in said:
            if step < 0:
                alone.rewind(length)
            else:
                _feed(alone, step, (length,))
        assert cache.ledger == alone.ledger
        for got, want in zip(_feed(cache, 99, (1, 60)), _feed(alone, 99, (1, 60)), strict=True):
            np.testing.assert_array_equal(got, want)


class _Model:
    shape = SHAPE
    rotations = (None,)


def test_a_chat_of_a_shared_budget_is_one_of_it_once() -> None:
    budget = SharedBudget("1MiB")
    config = CacheConfig(hot=HOT, block=BLOCK, backend=Backend.CPU)
    chat = budget.make_prompt_cache(_Model(), config)
    rows = RowsKVCache.of(chat)
    assert deepcopy(rows).rows[0] is rows.rows[0] is rows.extract(0) is chat[0]
    _feed(rows.rows[0], 1, (200,))
    assert budget.taken > 0
    budget.release(chat)
    assert budget.taken == 0
