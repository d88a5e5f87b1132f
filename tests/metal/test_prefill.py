"""Attention of many new tokens: the decoding kernel's text run here, the rest by MLX."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from kvcache.gpu import TierPrefill
from kvcache.tiers.reference_attention import attend_tiers
from kvcache.turn import Rotation
from tests.metal.build import Mode, find_compiler
from tests.metal.emulator import Emulator, Order
from tests.metal.recording import Recorder
from tests.metal.samples import Case, make, tolerance

pytestmark = pytest.mark.skipif(
    find_compiler() is None, reason="needs clang++ 18 or newer on x86-64 Linux"
)

CODECS = (
    "hkivi4/turbo4u",
    "hkivi5/turbo3u",
    "kvarn4/kvarn3",
    "q6/h3",
    "f16/kivi5",
    "turbo4/f16",
    "kivi2/q8",
)
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
    "window of one": Case(new=9, one_query=True, blocks=0, pinned=0, hot=83, window=1),
    "window in a ring": Case(new=37, one_query=True, blocks=0, pinned=0, hot=83, window=33),
    "window across tiers": Case(new=21, one_query=True, pinned=0, hot=11, window=67, dim=80),
    "window of wide heads": Case(
        new=9, one_query=True, blocks=0, pinned=0, hot=83, window=31, dim=256
    ),
    "wide heads": Case(new=9, one_query=True, blocks=3, dim=256, keys="kvarn8", values="f16"),
    "odd blocks": Case(new=9, one_query=True, block=33, values="kvarn3", keys="q5", dim=96),
}


# Some blocks are let go between the rows, which turn accordingly.
TURNING = Case(new=37, one_query=True, window_step=9, kv_heads=3, dim=80)
ROTATION = Rotation(periods=10.0 ** (np.arange(32) / 7), traditional=True)


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


@pytest.mark.parametrize("pinned", [4, 40])
@pytest.mark.parametrize("most", [64 * 2**20, SOME_HEADS, PIECES], ids=["one", "heads", "pieces"])
def test_rows_meet_pinned_tokens_at_their_own_distances(most: int, pinned: int) -> None:
    sample = make(replace(TURNING, pinned=pinned))
    gone = tuple(30 + 9 * (row // 8) for row in range(TURNING.new))
    sight = replace(sample.sight, rotation=ROTATION, gone=gone)
    assert len(sight.turning) == 5
    prefill = TierPrefill(launch=Emulator(), most_transient=most)
    got = prefill.attend(sample.q, sample.held, sight, scale=sample.scale)
    want = attend_tiers(sample.q, sample.held, sight, sample.scale)
    still = attend_tiers(sample.q, sample.held, replace(sight, rotation=None), sample.scale)
    assert float(mx.abs(got - want).max()) < tolerance(TURNING)
    assert float(mx.abs(got - still).max()) > 30 * tolerance(TURNING)


def test_a_moving_window_decodes_the_blocks_once_for_one_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder, masks, fused = Recorder(), [], mx.fast.scaled_dot_product_attention

    def attended(*tokens: mx.array, scale: float, mask: mx.array) -> mx.array:
        masks.append(mask)
        out: mx.array = fused(*tokens, scale=scale, mask=mask)
        return out

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", attended)
    sample = make(TURNING)
    sight = replace(sample.sight, rotation=ROTATION)
    TierPrefill(launch=recorder).attend(sample.q, sample.held, sight, scale=sample.scale)
    assert [call.kernel.stem for call in recorder.calls] == ["expand", "expand"]
    copies = TURNING.pinned * (TURNING.new - 1)
    assert [mask.shape for mask in masks] == [(TURNING.new, sight.columns + copies)]
