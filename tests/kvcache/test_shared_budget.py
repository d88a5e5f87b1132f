"""Several chats in one number of bytes: who draws, who lets go, and what comes back."""

import copy
import gc
from collections.abc import Sequence
from threading import Thread

import mlx.core as mx
import numpy as np
import pytest

from kvcache import (
    Backend,
    CacheConfig,
    CacheError,
    ModelShape,
    Rotation,
    SharedBudget,
    TwoTierKVCache,
    make_prompt_cache,
)
from kvcache.mlx_lm import describe
from kvcache.tiers.share import Share

HKV, HQ, DIM, BLOCK, HOT, SINKS = 2, 6, 32, 8, 11, 3
BACKENDS = ["reference", "cpu"]


class Network:
    """What a cache asks of a model, and nothing else."""

    def __init__(self, *, layers: int = 3, windows: tuple[int | None, ...] = ()) -> None:
        self.shape = ModelShape(
            layers=layers, kv_heads=HKV, head_dim=DIM, context=400, windows=windows
        )
        self.rotations = [Rotation(periods=np.ones(DIM // 2), traditional=False)] * layers


def _config(backend: str, keys: str = "q8/q4", **more: int) -> CacheConfig:
    return CacheConfig(
        **{"hot": HOT, "block": BLOCK, "sinks": SINKS, **more},
        keys=keys,
        backend=Backend(backend),
    )


def _tokens(position: int, count: int, layer: int, heads: int = HKV) -> mx.array:
    """Whatever the chat: tokens of a place in a layer."""
    drawn = [
        np.random.default_rng((layer, at, heads)).normal(size=(heads, DIM))
        for at in range(position, position + count)
    ]
    return mx.array(np.stack(drawn, axis=1)[None].astype(np.float32))


def _feed(caches: Sequence[TwoTierKVCache], count: int) -> list[mx.array]:
    """So many more tokens in all layers; what the last of them sees."""
    outputs = []
    for layer, cache in enumerate(caches):
        k, v = (_tokens(cache.offset, count, layer + 10 * kind) for kind in (0, 1))
        outputs.append(cache.attend(_tokens(7, count, layer, HQ), k, v, scale=DIM**-0.5))
    return outputs


def _bytes(*chats: Sequence[TwoTierKVCache]) -> int:
    return sum(cache.nbytes for chat in chats for cache in chat)


def _unencoded(config: CacheConfig, layers: int = 3) -> int:
    return layers * (SINKS + HOT + BLOCK - 1) * 2 * HKV * DIM * 2


def _block(cache: TwoTierKVCache, layers: int = 3) -> int:
    return layers * cache.plan.block_bytes((1, HKV, DIM))


@pytest.mark.parametrize("keys", ["q8/q4", "hkivi4/turbo4u", "f16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_chat_alone_is_as_if_the_budget_were_its_own(backend: str, keys: str) -> None:
    config, network = _config(backend, keys), Network()
    shared = SharedBudget("64MiB")
    ours, plain = shared.make_prompt_cache(network, config), make_prompt_cache(network, config)
    for count in (5, 40, 1, 1, 90, 8, 300, 7):
        for got, right in zip(_feed(ours, count), _feed(plain, count), strict=True):
            np.testing.assert_allclose(np.array(got), np.array(right), atol=1e-6)
    for cache, like in zip(ours, plain, strict=True):
        assert cache.ledger == like.ledger
        np.testing.assert_array_equal(np.array(cache.keys()), np.array(like.keys()))
    assert _bytes(ours) <= shared.taken <= shared.budget


@pytest.mark.parametrize("keys", ["q8/q4", "f16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_chat_that_grows_lets_its_own_oldest_block_go(backend: str, keys: str) -> None:
    config, network = _config(backend, keys), Network()
    like = make_prompt_cache(network, config)[0]
    shared = SharedBudget(2 * _unencoded(config) + 7 * _block(like))
    first, second = (shared.make_prompt_cache(network, config) for _ in range(2))
    _feed(first, SINKS + HOT + 4 * BLOCK)
    held = [np.array(cache.keys()) for cache in first]
    for _ in range(12):
        _feed(second, BLOCK)
        assert _bytes(first, second) <= shared.taken <= shared.budget
    assert {cache.stats().evicted for cache in first} == {0}
    for cache, keys_before in zip(first, held, strict=True):
        np.testing.assert_array_equal(np.array(cache.keys()), keys_before)
    assert first[0].plan.sizes.slots + second[0].plan.sizes.slots == 7
    assert {cache.stats().cold // BLOCK for cache in second} == {second[0].plan.sizes.slots}
    assert {cache.stats().evicted > 0 for cache in second} == {True}
    # What it holds is what a cache of so many slots holds that was fed the same.
    slots = second[0].plan.sizes.slots
    alone = make_prompt_cache(
        network, _config(backend, keys, max_tokens=SINKS + HOT + BLOCK - 1 + slots * BLOCK)
    )
    for _ in range(12):
        _feed(alone, BLOCK)
    for cache, right in zip(second, alone, strict=True):
        np.testing.assert_array_equal(np.array(cache.values()), np.array(right.values()))
        assert cache.stats().evicted == right.stats().evicted


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_chat_had_is_drawn_by_others_once_it_ends(backend: str) -> None:
    config, network = _config(backend), Network()
    like = make_prompt_cache(network, config)[0]
    shared = SharedBudget(2 * _unencoded(config) + 6 * _block(like))
    first, second = (shared.make_prompt_cache(network, config) for _ in range(2))
    _feed(first, 200)
    _feed(second, 100)
    assert second[0].stats().cold == 0
    with pytest.raises(CacheError, match=r"but 0 of .* are free: release a chat"):
        shared.make_prompt_cache(network, config)
    assert shared.chats == 2
    del first
    gc.collect()
    assert (shared.chats, shared.taken) == (1, _unencoded(config))
    _feed(second, 100)
    assert {cache.stats().cold for cache in second} == {12 * BLOCK}
    shared.release(second)
    assert (shared.chats, shared.taken) == (0, 0)
    # They are as new, and of no budget.
    plain = make_prompt_cache(network, config)
    for got, right in zip(_feed(second, 380), _feed(plain, 380), strict=True):
        np.testing.assert_array_equal(np.array(got), np.array(right))


def test_layers_with_windows_are_paid_for_at_once() -> None:
    network = Network(windows=(16, None, 16))
    shared = SharedBudget("1MiB")
    chat = shared.make_prompt_cache(network, _config("reference"))
    taken = shared.taken
    _feed(chat, 300)
    assert _bytes(chat) <= shared.taken
    assert shared.taken - taken == chat[1].plan.sizes.slots * chat[1].plan.block_bytes(
        (1, HKV, DIM)
    )


def test_chats_of_several_threads_never_pass_the_budget() -> None:
    config, network = _config("reference"), Network()
    like = make_prompt_cache(network, config)[0]
    shared = SharedBudget(4 * _unencoded(config) + 9 * _block(like))
    chats = [shared.make_prompt_cache(network, config) for _ in range(4)]
    passed = []

    def talk(chat: Sequence[TwoTierKVCache]) -> None:
        for _ in range(20):
            mx.eval(_feed(chat, 7))
            passed.append(shared.taken > shared.budget)

    threads = [Thread(target=talk, args=(chat,)) for chat in chats]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert passed == [False] * 80
    assert _bytes(*chats) <= shared.taken
    assert sum(chat[0].stats().cold for chat in chats) <= 9 * BLOCK
    for chat in chats:
        assert len({cache.ledger for cache in chat}) == 1


def test_what_a_shared_cache_does_not_take() -> None:
    shared = SharedBudget("1MiB")
    with pytest.raises(CacheError, match="a budget of its own in config"):
        shared.make_prompt_cache(Network(), CacheConfig.for_budget("1MiB"))
    chat = shared.make_prompt_cache(Network(), _config("reference"))
    two = mx.zeros((2, HKV, 1, DIM))
    with pytest.raises(CacheError, match=r"\[1, any, _, any\]"):
        chat[0].append(two, two)
    with pytest.raises(CacheError, match="of a shared budget, which keeps its own"):
        chat[0].set_policy(chat[0].plan)
    _feed(chat, 5)
    with pytest.raises(CacheError, match="of a shared budget: release its chat first"):
        chat[0].state = chat[1].state
    for budget in (0, -1, 1.5, True, None, "x"):
        with pytest.raises(CacheError, match=r"budget|number of bytes"):
            SharedBudget(budget)
    assert repr(shared) == f"SharedBudget({shared.taken} of 1048576 bytes taken by 1 chats)"


@pytest.mark.parametrize("backend", BACKENDS)
def test_newest_tokens_are_trimmed_as_ever(backend: str) -> None:
    config, network = _config(backend, slack=13), Network()
    like = make_prompt_cache(network, config)
    shared = SharedBudget("1MiB")
    chat = shared.make_prompt_cache(network, config)
    for count in (40, *([1, 5, 3, 9, 14] * 9)):
        for caches in (chat, like):
            _feed(caches, count)
            assert {cache.trim(min(count, 6)) for cache in caches} == {min(count, 6)}
        for cache, right in zip(chat, like, strict=True):
            np.testing.assert_array_equal(np.array(cache.keys()), np.array(right.keys()))
    assert _bytes(chat) <= shared.taken


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_prompt_hides_nothing_that_there_is_room_for(backend: str) -> None:
    """From mlx-lm's networks, which ask for the mask before the tokens come."""
    config, network = _config(backend), Network()
    plain = make_prompt_cache(network, config)
    chat = SharedBudget("1MiB").make_prompt_cache(network, config)
    for count in (90, 1, 47, 300):
        for layer, (cache, like) in enumerate(zip(chat, plain, strict=True)):
            masks = [np.array(each.make_mask(count, True)) for each in (cache, like)]
            np.testing.assert_array_equal(*masks)
            k = _tokens(cache.offset, count, layer)
            for got, right in zip(
                cache.update_and_fetch(k, k), like.update_and_fetch(k, k), strict=True
            ):
                np.testing.assert_array_equal(np.array(got), np.array(right))


def test_a_copy_is_bounded_by_what_the_chat_asked_for() -> None:
    """Not by what the chat had of the share by then; nor is one that was saved."""
    config, network = _config("cpu", slack=5), Network()
    like = make_prompt_cache(network, config)
    chat = SharedBudget("1MiB").make_prompt_cache(network, config)
    for caches in (chat, like):
        _feed(caches, 60)
    loaded = [TwoTierKVCache.from_state(cache.state) for cache in chat]
    assert describe(chat) == describe(like)
    for caches in (copy.deepcopy(chat), loaded):
        _feed(caches, 300)
        assert {cache.plan.sizes for cache in caches} == {like[0].plan.sizes}
        assert {cache.stats().evicted for cache in caches} == {0}
        _feed(caches, 90)
    _feed(like, 300)
    _feed(like, 90)
    for cache, right in zip(loaded, like, strict=True):
        np.testing.assert_array_equal(np.array(cache.keys()), np.array(right.keys()))


def test_a_chat_ends_whatever_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that would be refused are forgotten with all others, in all layers."""
    monkeypatch.setattr(TwoTierKVCache, "keeps_snapshot", True)
    shared = SharedBudget("1MiB")
    chat = shared.make_prompt_cache(Network(), _config("cpu"))
    _feed(chat, 60)
    for cache in chat:
        cache.update_and_fetch(mx.full((1, HKV, 1, DIM), mx.nan), mx.zeros((1, HKV, 1, DIM)))
    shared.release(chat)
    assert all(cache.empty() for cache in chat)
    fresh = make_prompt_cache(Network(), _config("cpu"))
    assert [cache.plan for cache in chat] == [cache.plan for cache in fresh]


def test_a_chat_that_ended_decodes_no_window_twice() -> None:
    shared = SharedBudget("1MiB")
    chat = shared.make_prompt_cache(Network(), _config("reference"))
    fresh = make_prompt_cache(Network(), _config("reference"))
    shared.release(chat)
    for caches in (chat, fresh):
        for layer, cache in enumerate(caches):
            for at in (0, 70, 71):
                k = _tokens(at, 70 if at == 0 else 1, layer)
                cache.update_and_fetch(k, k)
    assert {cache.nbytes for cache in chat} == {cache.nbytes for cache in fresh}


def test_what_is_left_of_a_chat_that_ended_draws_no_more() -> None:
    shared = SharedBudget("1MiB")
    chat = shared.make_prompt_cache(Network(), _config("reference"))
    _feed(chat, 60)
    shared.release(chat[:1])
    slots = chat[1].plan.sizes.slots
    _feed(chat, 200)
    assert (shared.taken, chat[1].plan.sizes.slots) == (0, slots)
    assert chat[1].stats().evicted > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_budget_is_asked_once_for_all_layers_of_a_step(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = SharedBudget("1MiB").make_prompt_cache(Network(layers=5), _config(backend))
    settle, asked = Share.settle, list[int]()

    def settling(share: Share, position: int, needed: int, most: int) -> None:
        asked.append(position)
        settle(share, position, needed, most)

    monkeypatch.setattr(Share, "settle", settling)
    for count in (50, 1, 1, 9):
        chat[0].make_mask(count)
        _feed(chat, count)
    assert asked == [50, 51, 52, 61]
