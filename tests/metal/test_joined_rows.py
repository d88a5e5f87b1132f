"""Rows of a batch on the GPU kernels' text: each is to the bit what it is alone."""

from collections import Counter
from collections.abc import Iterator
from copy import deepcopy

import mlx.core as mx
import numpy as np
import pytest

from kvcache import RowsKVCache, TwoTierKVCache, holding
from kvcache.codecs.feedback import LayerMetric
from kvcache.gpu import TierDecoder, TierEncoder, TierPrefill
from kvcache.gpu.kernel import Call
from kvcache.tiers.gpu import GpuTiers
from kvcache.tiers.ledger import TierSizes
from kvcache.tiers.plan import LayerPlan
from tests.kvcache.test_two_tier import make_plan
from tests.metal.build import find_compiler
from tests.metal.emulator import Emulator

pytestmark = pytest.mark.skipif(
    find_compiler() is None, reason="needs clang++ 18 or newer on x86-64 Linux"
)
SIZES = TierSizes(pinned=3, hot=6, block=5, slots=4)
# None encoded yet, some, and some let go.
LENGTHS = (2, 17, 60)


@pytest.fixture
def launched() -> Iterator[Counter[str]]:
    """How often each kernel was, for caches that are made meanwhile."""
    counts, emulate = Counter[str](), Emulator()

    def launch(call: Call) -> list[mx.array]:
        counts[call.kernel.stem] += 1
        return emulate(call)

    def tiers(plan: LayerPlan, metric: LayerMetric | None = None) -> GpuTiers:
        return GpuTiers(
            plan,
            metric,
            decoder=TierDecoder(launch=launch),
            prefill=TierPrefill(launch=launch),
            encoder=TierEncoder(launch=launch),
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holding, "make_tiers", tiers)
        yield counts


def draw(rows: int, length: int, seed: int) -> list[mx.array]:
    """Queries, keys and values."""
    heads = enumerate((6, 2, 2), start=3 * seed)
    return [
        mx.random.normal((rows, each, length, 16), key=mx.random.key(key)) for key, each in heads
    ]


def read(lengths: tuple[int, ...] = LENGTHS) -> list[TwoTierKVCache]:
    """Caches of prompts of these lengths."""
    made = [TwoTierKVCache(make_plan(SIZES, ("hkivi4", "turbo4u"))) for _ in lengths]
    for seed, (cache, length) in enumerate(zip(made, lengths, strict=True)):
        cache.attend(*draw(1, length, seed), scale=0.3)
    return made


def step(rows: RowsKVCache, alone: list[TwoTierKVCache], length: int, seed: int) -> None:
    """So many new tokens of all rows, each of which gets what it gets alone."""
    given = draw(len(alone), length, seed)
    got = np.asarray(rows.attend(*given, scale=0.3))
    for row, cache in enumerate(alone):
        want = cache.attend(*(x[row : row + 1] for x in given), scale=0.3)
        np.testing.assert_array_equal(got[row : row + 1], np.asarray(want))


def test_rows_of_any_lengths_come_and_go(launched: Counter[str]) -> None:
    alone = read()
    rows = RowsKVCache.of(alone)
    for seed, length in enumerate((1, 1, 5, 1, 11, 1), start=20):
        step(rows, alone, length, seed)
    (late,) = read((33,))
    rows.filter([2, 0])
    rows.extend(RowsKVCache.of([late]))
    alone = [alone[2], alone[0], late]
    for seed, length in enumerate((1, 6, 1), start=30):
        step(rows, alone, length, seed)
    taken = rows.extract(1)
    given = draw(1, 1, 40)
    want = alone[1].attend(*given, scale=0.3)
    np.testing.assert_array_equal(np.asarray(taken.attend(*given, scale=0.3)), np.asarray(want))
    assert launched["encode"] > 0


def test_padding_reaches_no_row(launched: Counter[str]) -> None:
    most = max(LENGTHS)
    padding = [most - length for length in LENGTHS]
    plan = make_plan(SIZES, ("hkivi4", "turbo4u"))
    rows = RowsKVCache([TwoTierKVCache(plan) for _ in LENGTHS], left_padding=padding)
    given = draw(len(LENGTHS), most, 50)
    got = np.asarray(rows.attend(*given, scale=0.3))
    alone = [TwoTierKVCache(plan) for _ in LENGTHS]
    for row, (cache, ahead) in enumerate(zip(alone, padding, strict=True)):
        own = [x[row : row + 1, :, ahead:] for x in given]
        want = np.asarray(cache.attend(*own, scale=0.3))
        np.testing.assert_array_equal(got[row : row + 1, :, ahead:], want)
        assert not got[row, :, :ahead].any()
    step(rows, alone, 1, 51)
    assert launched["merge"] >= 2 * len(LENGTHS)  # those of the last step


def test_a_token_of_all_rows_takes_each_row_s_launches(launched: Counter[str]) -> None:
    """Rows hold other lengths, and a launch knows one: `docs/gpu-kernels.md` tells the count."""
    alone = read()
    rows = RowsKVCache.of([deepcopy(cache) for cache in alone])
    launched.clear()
    rows.attend(*draw(3, 1, 60), scale=0.3)
    # The first row has no encoded block.
    assert launched == {"cold": 2, "unencoded": 3, "merge": 3}
