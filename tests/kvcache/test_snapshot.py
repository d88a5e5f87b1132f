"""What a snapshot shows, and that it goes on showing it."""

from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcache import Backend
from kvcache.holding import make_tiers
from kvcache.snapshot import runs
from kvcache.tiers.ledger import Ledger, TierSizes
from kvcache.tiers.memory import Tiers
from tests.kvcache.test_two_tier import make_plan

SIZES = TierSizes(pinned=3, hot=7, block=32, slots=5)
BACKENDS = pytest.mark.parametrize("backend", [Backend.REFERENCE, Backend.CPU])
CODECS = pytest.mark.parametrize(
    "kv", [("hkivi5", "turbo3u"), ("f16", "f16"), ("turbo4p", "q4")], ids="/".join
)


def tokens_of(positions: range) -> mx.array:
    """[1, 2, L, 16]: each token's channels tell its position."""
    at = mx.array(list(positions), mx.float32)[None, None, :, None]
    return mx.broadcast_to(at, (1, 2, len(positions), 16))


def filled(tiers: Tiers[mx.array], ledger: Ledger, count: int) -> Ledger:
    after = ledger.appended(count)
    new = tokens_of(range(ledger.total, after.total))
    tiers.append(ledger, after, tiers.prepare(new, -new))
    return after


@settings(deadline=None)
@given(
    segments=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    first=st.integers(0, 40),
    data=st.data(),
)
def test_runs_lie_side_by_side(segments: list[int], first: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, sum(segments)))
    places = [(segment, at) for segment, size in enumerate(segments) for at in range(size)]
    want = [places[(first + i) % len(places)] for i in range(count)]
    found = list(runs(first, count, segments))
    assert [(run.segment, at) for run in found for at in range(run.at, run.stop)] == want
    assert all(one.done + one.stop - one.at == other.done for one, other in pairwise(found))


@BACKENDS
@CODECS
def test_what_it_shows_stays(backend: Backend, kv: tuple[str, str]) -> None:
    tiers = make_tiers(make_plan(SIZES, kv, backend))
    ledger = filled(tiers, Ledger(sizes=SIZES), 217)
    new = tiers.prepare(tokens_of(range(217, 219)), tokens_of(range(217, 219)))
    held = tiers.snapshot(ledger, new)
    keys, values = held.decoded(mx.float32)
    positions = [*range(3), *range(3 + ledger.evicted, 219)]
    np.testing.assert_allclose(np.asarray(keys)[0, 1, :, 5], positions, rtol=0.25, atol=4)
    # Lazily still: what is written after it must not be seen.
    before = [np.array(array) for array in held.decoded(mx.float32)]
    filled(tiers, ledger, 150)
    for array, want in zip((keys, values), before, strict=True):
        np.testing.assert_array_equal(np.asarray(array), want)
    for array, want in zip(held.decoded(mx.float32), before, strict=True):
        np.testing.assert_array_equal(np.asarray(array), want)


@BACKENDS
@CODECS
@pytest.mark.parametrize("total", [0, 2, 9, 60, 400])
def test_positions_follow_each_other(backend: Backend, kv: tuple[str, str], total: int) -> None:
    tiers = make_tiers(make_plan(SIZES, kv, backend))
    ledger = filled(tiers, Ledger(sizes=SIZES), total) if total else Ledger(sizes=SIZES)
    held = tiers.snapshot(ledger, tiers.prepare(tokens_of(range(5)), tokens_of(range(5))))
    bounds = held.bounds
    assert (bounds.pinned, bounds.cold_position) == (
        ledger.pinned,
        ledger.pinned + ledger.evicted,
    )
    assert bounds.new_position == total
    for most in (None, 1, 2):
        cold = [
            position + at * SIZES.block
            for position, keys, _ in held.encoded(most)
            for at in range(len(next(iter(keys.parts.values()))))
        ]
        assert cold == list(range(bounds.cold_position, bounds.hot_position, SIZES.block))
    spans = [(at, at + tokens.length) for at, tokens in held.unencoded()]
    at = [position for span in spans for position in range(*span)]
    assert at == [*range(ledger.pinned), *range(bounds.hot_position, total + 5)]
