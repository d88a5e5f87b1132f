"""Saved caches that were damaged or made up: each loads as it was, or is a CacheError."""

import json
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import load_prompt_cache, save_prompt_cache

from kvcache import (
    Backend,
    BlockPool,
    CacheConfig,
    CacheError,
    DynamicKVCache,
    HotDtype,
    PagedKVCache,
    Rotation,
    TwoTierKVCache,
)
from kvcache.integrity import check_sum, checksum
from kvcache.mlx_lm import load_prompt_cache as load_damaged
from kvcache.tiers.ledger import TierSizes
from kvcache.tiers.plan import LayerPlan

HKV, DIM = 2, 32
ROTATION = Rotation(periods=9.0 ** (np.arange(DIM // 2) / 5), traditional=True)
Cache = TwoTierKVCache | DynamicKVCache | PagedKVCache
CacheType = TypeVar("CacheType", TwoTierKVCache, DynamicKVCache, PagedKVCache)
State = tuple[Any, ...]


def _filled(cache: CacheType, length: int) -> CacheType:
    keys = (mx.random.key(seed) for seed in (1, 2))
    k, v = (mx.random.normal((1, HKV, length, DIM), key=key) for key in keys)
    cache.append(k, v)
    return cache


def _two_tier(backend: Backend = Backend.CPU, length: int = 250) -> TwoTierKVCache:
    config = CacheConfig(max_tokens=160, hot=16, sinks=3, block=32, backend=backend)
    return _filled(TwoTierKVCache.from_config(config, rotation=ROTATION), length)


def _dynamic() -> DynamicKVCache:
    return _filled(DynamicKVCache(90, left_padding=[2]), 37)


def _paged() -> PagedKVCache:
    pool = BlockPool(12, kv_heads=HKV, head_dim=DIM, page_tokens=8, dtype=HotDtype.BF16)
    return _filled(_filled(PagedKVCache(pool, max_pages=4), 30), 5)


def _window(hot: int, length: int = 150) -> TwoTierKVCache:
    config = CacheConfig(max_tokens=160, backend=Backend.CPU)
    sizes = TierSizes.of_window(71, hot=hot, block=32)
    plan = LayerPlan.of(config, sizes, layer=1)
    return _filled(TwoTierKVCache(plan, rotation=ROTATION), length)


KINDS: dict[str, Callable[[], Cache]] = {
    "two-tier": _two_tier,
    "two-tier, short": lambda: _two_tier(Backend.REFERENCE, 20),
    "window": lambda: _window(71),
    "window, two tiers": lambda: _window(7),
    "dynamic": _dynamic,
    "paged": _paged,
}
EVERY = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


def _alike(one: Cache, other: Cache) -> bool:
    """Whether two caches hold the same, under the same figures."""
    figures = [
        json.dumps([part for part in cache.state if isinstance(part, str | int | dict)])
        for cache in (one, other)
    ]
    tokens = (
        mx.array_equal(a(), b()) for a, b in ((one.keys, other.keys), (one.values, other.values))
    )
    return figures[0] == figures[1] and all(bool(same.item()) for same in tokens)


def _attended(cache: Cache) -> None:
    """Attend to what was loaded: whatever it is, nothing outside of it is touched."""
    new = mx.ones((1, HKV, 1, DIM), mx.float16)
    try:
        mx.eval(cache.attend(new, new, new, scale=0.2), cache.keys())
    except CacheError:
        assert not cache.empty()


@EVERY
def test_what_is_whole_loads_as_it_was(make: Callable[[], Cache]) -> None:
    cache = make()
    assert _alike(type(cache).from_state(cache.state), cache)


ODD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 7, 31, 2**31 - 1, 2**31, 2**63, 10**400),
    *(0.5, 1e308, float("nan"), float("inf"), "", "h8", "f64", [], [1], {}, "[" * 99_999),
)


def _odd(rng: random.Random, value: Any) -> Any:
    """Something else in place of a part of a state, or inside it."""
    if isinstance(value, mx.array) and value.size and rng.random() < 0.8:
        return _odd_array(rng, value)
    if isinstance(value, str) and value.startswith("{"):
        described = json.loads(value)
        inside = described
        while isinstance(inside, dict) and inside:
            name = rng.choice(sorted(inside))
            if not isinstance(inside[name], dict) or rng.random() < 0.1:
                inside[name] = _odd_number(rng, inside[name])
                break
            inside = inside[name]
        return json.dumps(described)
    if isinstance(value, dict):
        name = rng.choice(sorted(value))
        return value | {name: _odd_number(rng, value[name])}
    return _odd_number(rng, value)


def _odd_number(rng: random.Random, value: Any) -> Any:
    near = isinstance(value, int) and rng.random() < 0.6
    return value + rng.choice((-32, -1, 1, 2, 32)) if near else rng.choice(ODD_VALUES)


def _odd_array(rng: random.Random, array: mx.array) -> mx.array | None:
    axis = rng.randrange(max(array.ndim, 1))
    changes: list[Callable[[], mx.array | None]] = [
        lambda: None,
        lambda: array.astype(rng.choice((mx.float32, mx.float16, mx.uint8, mx.int64))),
        lambda: array.flatten(),
        lambda: array[None],
        lambda: mx.concatenate([array, array], axis=axis) if array.ndim else array + 1,
        lambda: mx.take(array, mx.arange(array.shape[axis] // 2), axis) if array.ndim else array,
        lambda: mx.zeros((0,)),
        lambda: array.swapaxes(0, -1) if array.ndim else array,
        lambda: mx.full(array.shape, mx.nan).astype(array.dtype),
    ]
    return rng.choice(changes)()


def _sealed(state: State) -> State:
    """The state with the sum that belongs to it, where one can be made."""
    at = 1 if isinstance(state[0], str) else len(state) - 1
    rest = [*state[:at], *state[at + 1 :]]
    arrays = [part for part in rest if part is None or isinstance(part, mx.array)]
    if any(array is not None and array.dtype.size > 4 for array in arrays):
        return state
    numbers = [part for part in rest if isinstance(part, int)]
    figures = [repr(sorted(part.items())) for part in rest if isinstance(part, dict)]
    text = state[0] if at == 1 else "".join(figures) or " ".join(map(str, numbers))
    return *state[:at], checksum(text, arrays), *state[at + 1 :]


@EVERY
@pytest.mark.parametrize("sealed", [False, True], ids=["damaged", "made up"])
def test_any_other_state_is_refused_or_harmless(make: Callable[[], Cache], sealed: bool) -> None:
    cache, refused = make(), []
    for seed in range(130):
        rng = random.Random(seed)
        state = list(cache.state)
        for at in rng.sample(range(len(state)), rng.choice((1, 1, 1, 2))):
            state[at] = _odd(rng, state[at])
        if rng.random() < 0.05:
            state = state[:-1]
        try:
            loaded = type(cache).from_state(_sealed(tuple(state)) if sealed else tuple(state))
        except CacheError as error:
            refused.append(str(error))
            continue
        # What is made up with care may be another cache, but never one that reads elsewhere.
        assert sealed or _alike(loaded, cache), seed
        _attended(loaded)
    assert len(refused) > 60
    assert all("\n" not in message and len(message) < 400 for message in refused)


@EVERY
def test_any_bit_of_a_file_counts(make: Callable[[], Cache], tmp_path: Path) -> None:
    cache, path = make(), tmp_path / "cache.safetensors"
    save_prompt_cache(str(path), [cache])
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    # Texts and numbers, which mlx-lm reads by itself, are 32-bit integers.
    places = [
        range(*each["data_offsets"])
        for each in header.values()
        if each.get("dtype") in ("F16", "BF16", "F32", "U32")
    ]
    for seed in range(60):
        rng = random.Random(seed)
        damaged = bytearray(content)
        damaged[begin + rng.choice(rng.choice([place for place in places if place]))] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(CacheError, match="damaged"):
            load_prompt_cache(str(path))
    path.write_bytes(content)
    assert _alike(load_prompt_cache(str(path))[0], cache)


def test_a_state_that_is_refused_changes_nothing() -> None:
    for make in KINDS.values():
        cache = make()
        before, state = cache.stats(), list(cache.state)
        state[-2 if isinstance(cache, DynamicKVCache) else 0] = 5
        with pytest.raises(CacheError):
            cache.state = tuple(state)
        assert cache.stats() == before


def test_a_cache_beyond_the_machine_is_refused() -> None:
    state = _two_tier().state
    described = json.loads(state[0])
    described["plan"]["sizes"]["slots"] = 10**7
    described["shape"][1] = 10**6
    with pytest.raises(CacheError, match=r"got pinned tokens|bytes a layer, but this machine has"):
        TwoTierKVCache.from_state(_sealed((json.dumps(described), *state[1:])))
    described["shape"][1] = HKV
    described["plan"]["sizes"]["slots"] = 2**31 - 1
    with pytest.raises(CacheError, match="expected at most 2147483647 tokens"):
        TwoTierKVCache.from_state(_sealed((json.dumps(described), *state[1:])))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32, mx.uint32, mx.uint8])
def test_the_sum_tells_bits_shapes_and_text(dtype: mx.Dtype) -> None:
    array = (mx.random.normal((3, 5, 7), key=mx.random.key(1)) * 9).astype(dtype)
    total = checksum("text", [array, None])
    check_sum(total, "text", [mx.array(array), None])
    other = mx.array(array)
    other[2, 4, 6] += 1
    for text, arrays in (
        ("texu", [array, None]),
        ("text", [other, None]),
        ("text", [array.reshape(5, 3, 7), None]),
        ("text", [None, array]),
        ("text", [array[::-1], None]),
    ):
        with pytest.raises(CacheError, match="damaged"):
            check_sum(total, text, arrays)


@pytest.mark.parametrize("kind", ["dynamic", "paged"])
def test_what_was_saved_before_there_were_sums_is_read(kind: str) -> None:
    cache = KINDS[kind]()
    *parts, _ = cache.state
    again = type(cache).from_state(tuple(parts))
    assert again.offset == cache.offset
    for old, new in zip(cache.state, again.state, strict=True):
        assert mx.array_equal(old, new) if isinstance(old, mx.array) else old == new


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_file_is_a_cache_error_and_nothing_else(seed: int, tmp_path: Path) -> None:
    cache, path, rng = _two_tier(), tmp_path / "cache.safetensors", random.Random(seed)
    save_prompt_cache(str(path), [cache], {"model": "m"})
    data = bytearray(path.read_bytes())
    # Half of them in the header, which mlx-lm reads before we do.
    for _ in range(rng.randint(1, 3)):
        data[rng.randrange(2048 if seed % 2 else len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data[: rng.choice((len(data), rng.randrange(len(data))))])
    with suppress(CacheError):
        (loaded,) = load_damaged(path)
        assert _alike(loaded, cache)


def test_a_number_in_a_file_makes_no_list_of_its_length(tmp_path: Path) -> None:
    path = tmp_path / "cache.safetensors"
    save_prompt_cache(str(path), [_two_tier()])
    found: Any = mx.load(str(path), return_metadata=True)
    arrays, texts = found
    texts["0.0.2147483648.0"] = "x"
    mx.save_safetensors(str(path), arrays, texts)
    with pytest.raises(CacheError, match="places that no saved cache has"):
        load_damaged(path)
    with pytest.raises(CacheError, match="no saved cache"):
        load_damaged(tmp_path / "nowhere.safetensors")


PIECES = [("hkivi5", "turbo3u"), ("q4", "turbo4p"), ("f16", "f16"), ("kvarn4", "h8")]


@pytest.mark.parametrize("codecs", PIECES, ids="/".join)
@pytest.mark.parametrize("into", [Backend.CPU, Backend.REFERENCE], ids=lambda each: each.value)
@pytest.mark.parametrize("length", [2, 17, 90, 250])
def test_a_state_piece_by_piece_is_the_state(
    codecs: tuple[str, str], into: Backend, length: int
) -> None:
    """Blocks one at a time, then some together, into a cache that held something else."""
    config = CacheConfig(
        max_tokens=160, hot=16, sinks=3, block=32, keys=codecs[0], values=codecs[1]
    )
    cache, other = (
        _filled(TwoTierKVCache.from_config(replace(config, backend=each), rotation=ROTATION), many)
        for each, many in ((Backend.CPU, length), (into, 130))
    )
    ledger = cache.ledger
    other.hold(ledger, (1, HKV, DIM), cache.unencoded())
    edges = [*range(ledger.first, ledger.end, 2), ledger.end]
    for first, end in pairwise(edges):
        parts = cache.parts(first, end)
        specs = cache.part_specs(DIM)
        assert [part.shape for part in parts] == [
            (end - first, 1, HKV, *spec.shape) for _, spec in specs
        ]
        assert [part.dtype for part in parts] == [spec.dtype for _, spec in specs]
        other.put_parts(first, parts)
    assert other.policy == cache.policy
    (found, wanted) = (_without_backend(each.state) for each in (other, cache))
    assert len(found) == len(wanted)
    for got, want in zip(found, wanted, strict=True):
        assert (got is None) == (want is None)
        if got is not None:
            np.testing.assert_array_equal(np.array(got), np.array(want))


def test_a_cache_holds_nothing_of_another_plan() -> None:
    cache, other = _two_tier(), _window(16)
    before = other.state
    with pytest.raises(CacheError, match="expected TierSizes"):
        other.hold(cache.ledger, (1, HKV, DIM), cache.unencoded())
    with pytest.raises(CacheError, match="got tokens"):
        cache.hold(cache.ledger, (1, HKV, DIM + 16), cache.unencoded())
    for one, two in zip(before, other.state, strict=True):
        assert (one is None) == (two is None)
    assert cache.policy != other.policy


def test_numbers_that_are_not_finite_are_held_by_no_cache() -> None:
    cache = _two_tier()
    tokens = [None if each is None else each + mx.inf for each in cache.unencoded()]
    with pytest.raises(CacheError, match="finite"):
        cache.hold(cache.ledger, (1, HKV, DIM), tokens)
    assert cache.offset == 0


def _without_backend(state: State) -> list[mx.array | None]:
    """The arrays; the sum is over the text too."""
    return list(state[2:])
