"""Attention of many new tokens: the decoding kernel's text run here, the rest by MLX."""

import mlx.core as mx
import numpy as np
import pytest

from kvcache.gpu import TierPrefill
from tests.metal.build import Mode, find_compiler
from tests.metal.emulator import Emulator, Order
from tests.metal.samples import Case, make, tolerance

pytestmark = pytest.mark.skipif(
    find_compiler() is None, reason="needs clang++ 18 or newer on x86-64 Linux"
)

CODECS = ("hkivi5/turbo3u", "kvarn4/kvarn3", "q6/h3", "f16/kivi5", "turbo4/f16", "kivi2/q8")
PIECES = 20_000  # bytes, a few blocks of one head
SOME_HEADS = 700_000
CASES = {
    "all tiers": Case(new=19, one_query=True),
    "window moves": Case(new=37, one_query=True, window_step=9),
    "cold full and wrapped": Case(new=11, one_query=True, blocks=6, dim=80, kv_heads=3, batch=2),
    "pinned many": Case(new=13, one_query=True, pinned=200, blocks=3, group=1),
    "hot only": Case(new=9, one_query=True, blocks=0, pinned=0),
    "nothing held": Case(new=9, one_query=True, blocks=0, pinned=0, hot=0, evicted=0),
    "large scores": Case(new=11, one_query=True, sharpness=50),
    "none new": Case(in_tiers=11, one_query=True, hot=23),
    "none new, only cold": Case(in_tiers=1, one_query=True, hot=0, pinned=0),
    "odd blocks": Case(new=9, one_query=True, block=33, values="kvarn3", keys="q5", dim=96),
}


def check(case: Case, prefill: TierPrefill) -> None:
    sample = make(case)
    out = prefill.attend(sample.q, sample.held, sample.sight, scale=sample.scale)
    assert out.dtype == case.query
    got = np.array(out.astype(mx.float32))
    np.testing.assert_allclose(got, sample.expected, rtol=0, atol=tolerance(case))


@pytest.mark.parametrize("most", [64 * 2**20, SOME_HEADS, PIECES], ids=["one", "heads", "pieces"])
@pytest.mark.parametrize("name", CASES)
def test_every_way_gives_the_same(name: str, most: int) -> None:
    check(CASES[name], TierPrefill(launch=Emulator(), most_transient=most))


@pytest.mark.parametrize("pair", CODECS)
def test_codecs(pair: str) -> None:
    keys, values = pair.split("/")
    case = Case(keys=keys, values=values, new=9, one_query=True, dim=80, block=40)
    check(case, TierPrefill(launch=Emulator()))
    check(case, TierPrefill(launch=Emulator(mode=Mode.MEMORY)))
    check(case, TierPrefill(launch=Emulator(order=Order.RANDOM)))


def test_no_races() -> None:
    check(Case(new=9, one_query=True), TierPrefill(launch=Emulator(mode=Mode.RACES)))


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=str)
def test_dtypes(dtype: mx.Dtype) -> None:
    check(Case(new=9, one_query=True, query=dtype, dtype=dtype), TierPrefill(launch=Emulator()))
