"""Memory follows what is held: in 16 bits the same tokens would take as much, but for a block."""

import mlx.core as mx
import pytest

from kvcache import Backend, CacheConfig, HotDtype, ModelShape, TwoTierKVCache, resolve
from kvcache.gpu.families import family_of
from kvcache.gpu.segments import SegmentInputs, key_role, value_role
from kvcache.prompt_cache import from_plan
from kvcache.snapshot import Tokens
from kvcache.tiers.cold_ring import ColdRing, segment_sizes
from kvcache.tiers.plan import cold_codec

SHAPE = ModelShape(layers=2, kv_heads=2, head_dim=64, context=2**17)
BACKENDS = [Backend.REFERENCE, Backend.CPU]


def _caches(backend: Backend, slack: int) -> list[TwoTierKVCache]:
    return from_plan(resolve(CacheConfig(backend=backend, slack=slack), SHAPE), None)


def _check(cache: TwoTierKVCache) -> None:
    stats, plan = cache.stats(), cache.plan
    block = plan.sizes.block * plan.token_bytes((1, SHAPE.kv_heads, SHAPE.head_dim))
    assert stats.held_bytes <= stats.allocated_bytes <= stats.fp16_bytes + block, stats


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("slack", [0, 16])
def test_a_default_plan_takes_no_more_than_16_bits_and_a_block(
    backend: Backend, slack: int
) -> None:
    """At every count of tokens until some segments have come, and at the edges of the others."""
    cache, *_ = _caches(backend, slack)
    slots = cache.plan.sizes.slots
    assert slots > 2000
    zeros = mx.zeros((1, SHAPE.kv_heads, 1, SHAPE.head_dim))
    for _ in range(900):
        cache.append(zeros, zeros)
        _check(cache)
    ends, total = [], 0
    for size in segment_sizes(slots):
        ends.append(total := total + size)
    for end in ends:
        for more in (0, 1, 2):
            wanted = 4 + 256 + (end + more) * 64
            if cache.offset < wanted < 131072:
                many = mx.zeros((1, SHAPE.kv_heads, wanted - cache.offset, SHAPE.head_dim))
                cache.append(many, many)
                _check(cache)
    assert cache.ledger.end > ends[-2]


@pytest.mark.parametrize("slots", [1, 2, 5, 26, 300, 2040, 9000, 2**20])
def test_segments_begin_with_a_block_and_are_few(slots: int) -> None:
    sizes = segment_sizes(slots)
    assert (sizes[0], sum(sizes)) == (1, slots)
    assert len(sizes) <= 8
    assert sorted(sizes[:-1]) == list(sizes[:-1])
    assert segment_sizes(0) == ()


def test_growing_copies_no_block() -> None:
    codecs = cold_codec("hkivi5", HotDtype.F16, 0), cold_codec("turbo3u", HotDtype.F16, 0)
    ring, before = ColdRing(40, block=8, codecs=codecs), []
    for number in range(40):
        tokens = mx.random.normal((1, 2, 8, 64))
        ring.write(number, Tokens(tokens, tokens))
        before.append(ring.held.segments)
    grown = [at for at in range(1, 40) if len(before[at]) > len(before[at - 1])]
    assert len(grown) == len(segment_sizes(40)) - 1
    for at in grown:
        for old, new in zip(before[at - 1], before[at], strict=False):
            assert all(old[role][name] is new[role][name] for role in (0, 1) for name in old[role])


@pytest.mark.parametrize(("keys", "values", "most"), [("hkivi5", "turbo3u", 5), ("q4", "q4", 4)])
def test_a_launch_reads_as_many_segments_as_its_buffers_allow(
    keys: str, values: str, most: int
) -> None:
    families = [family_of(cold_codec(name, HotDtype.F16, 0), 64) for name in (keys, values)]
    inputs = SegmentInputs(roles=(key_role(families[0]), value_role(families[1])), others=6)
    assert inputs.segments == most
