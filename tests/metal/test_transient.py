"""Memory that a prompt step takes beside the cache, as MLX's allocator counts it.

The kernel that decodes blocks gives zeros here, and MLX's fused attention, which on a
GPU holds no scores, is stood in for; all else runs.
"""

from dataclasses import replace

import mlx.core as mx
import pytest

from kvcache import codec
from kvcache.gpu import ColdBlocks, DenseTokens, HotRing, TierArrays, TierPrefill
from kvcache.gpu.kernel import Call
from kvcache.gpu.prefill import MOST_TRANSIENT
from kvcache.gpu.window import Mask
from tests.metal.samples import Case


def zeros(call: Call) -> list[mx.array]:
    """A launcher that allocates the outputs."""
    return [mx.zeros(shape, dtype) for shape, dtype in zip(call.shapes, call.dtypes, strict=True)]


def fused(q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Mask) -> mx.array:
    """As large as MLX's, after all of its inputs."""
    seen = [mask] if isinstance(mask, mx.array) else []
    nothing = mx.stack([array.sum().astype(q.dtype) for array in (k, v, *seen)])
    return q + nothing.sum() * 0 * scale


def tiers_of(case: Case) -> TierArrays:
    """Of zeros: what they hold does not matter."""

    def tokens(count: int) -> DenseTokens:
        keys, values = (mx.zeros((1, case.kv_heads, count, case.dim), mx.float16) for _ in "kv")
        return DenseTokens(keys=keys, values=values, count=count)

    keys, values = codec(case.keys), codec(case.values)
    pair = [
        {
            name: mx.zeros((case.blocks, 1, case.kv_heads, *spec.shape), spec.dtype)
            for name, spec in each.shapes(case.block, case.dim).items()
        }
        for each in (keys, values)
    ]
    cold = ColdBlocks(
        key_codec=keys,
        value_codec=values,
        segments=[(pair[0], pair[1])],
        first_slot=0,
        blocks=case.blocks,
        block=case.block,
        dim=case.dim,
        slots=case.blocks,
        position=case.pinned,
    )
    ring, new = tokens(case.hot), tokens(case.new)
    start = case.pinned + case.blocks * case.block
    hot = HotRing(keys=ring.keys, values=ring.values, start=9, count=case.hot, position=start)
    return TierArrays(pinned=tokens(case.pinned), cold=cold, hot=hot, new=new)


CASES = {
    "TinyLlama": Case(kv_heads=4, group=8, dim=64, blocks=32),
    "TinyLlama, 32k": Case(kv_heads=4, group=8, dim=64, blocks=512),
    "TinyLlama, 32k, window moves": Case(kv_heads=4, group=8, blocks=512, window_step=1),
    "Llama-2-7B": Case(kv_heads=32, group=1, dim=128, blocks=64),
    "Llama-2-7B, 32k, window moves": Case(kv_heads=32, group=1, dim=128, blocks=512, window_step=1),
    "no fused attention": Case(kv_heads=2, group=2, dim=96, blocks=48, keys="kivi4"),
    "one head does not fit": Case(kv_heads=1, group=2, blocks=256, window_step=1),
}
# Bytes of the bound where it is not the default.
BOUNDS = {"no fused attention": 20 * 2**20, "one head does not fit": 8 * 2**20}


@pytest.mark.parametrize("name", CASES)
def test_a_prompt_step_keeps_to_the_bound(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", fused)
    # Rows between which a block was let go meet the sinks at other distances, so go in groups.
    moves = CASES[name].window_step > 0
    case = replace(CASES[name], new=64 if moves else 512, hot=319, pinned=4)
    tiers = tiers_of(case)
    q = mx.zeros((1, case.kv_heads * case.group, case.new, case.dim), mx.float16)
    lowest = mx.array([case.pinned + case.window_step * i for i in range(case.new)])
    position = case.pinned + case.blocks * case.block + case.hot
    held = [
        array
        for tier in (tiers.pinned, tiers.hot, tiers.new)
        if tier
        for array in (tier.keys, tier.values)
    ]
    assert tiers.cold
    mx.eval(q, lowest, held, tiers.cold.segments)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    bound = BOUNDS.get(name, MOST_TRANSIENT)
    prefill = TierPrefill(launch=zeros, most_transient=bound)
    out = prefill.attend(q, tiers, lowest=lowest, position=position, scale=0.1)
    mx.eval(out)
    taken = mx.get_peak_memory() - before - out.nbytes
    assert 2**20 < taken <= bound
