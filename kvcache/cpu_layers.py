"""All layers of a network over their caches in one native call.

Does what each layer's attention and `TwoTierKVCache.attend` would do one after
the other; `run_layers` says so where it cannot.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvcache.checks import not_finite
from kvcache.native import structs
from kvcache.native.library import Library
from kvcache.native.structs import HEAD_DIM_STEP, Floats, address
from kvcache.native.weights import Layer
from kvcache.tiers.cpu import CpuTiers
from kvcache.tiers.ledger import Ledger
from kvcache.two_tier import TwoTierKVCache


@dataclass(frozen=True, kw_only=True)
class Heads:
    """What all layers share. periods: of the interleaved rope, see `rotation`."""

    query: int
    kv: int
    dim: int
    scale: float
    periods: npt.NDArray[np.float64]


def run_layers(
    x: Floats,
    weights: Sequence[Layer],
    caches: Sequence[TwoTierKVCache],
    heads: Heads,
    kernels: Library,
) -> bool:
    """Take x [B, L, hidden] through all layers in place, appending to their caches.

    False, with nothing done, where the caches are not alike or not native. Raises
    CacheError for keys or values that are not finite; the layers before the one
    that refused them have appended.
    """
    batch, length, _ = x.shape
    ledger, plan = caches[0].ledger, caches[0].plan
    tiers = [cache.tiers for cache in caches if _alike(cache, caches[0])]
    native = [one for one in tiers if isinstance(one, CpuTiers)]
    held = batch, heads.kv, heads.dim
    fits = len(native) == len(caches) and all(cache.takes(held) for cache in caches)
    memories = [one.struct(held) for one in native] if fits else []
    found = [memory for memory in memories if memory is not None]
    rows = range(ledger.total, ledger.total + length)
    gone = [ledger.evicted_before(position) for position in rows]
    pins = ledger.total < plan.sizes.pinned
    if len(found) < len(caches) or heads.dim % HEAD_DIM_STEP or (pins and any(gone)):
        return False
    after = ledger.appended(length)
    if after.end > ledger.end:
        for one in native:
            one.reserve(max(ledger.end, after.first), after.end)
    # Nothing is let go while pinned tokens are new: they come as any others then.
    lowest = np.array([plan.sizes.pinned + n if n else 0 for n in gone], np.int64)
    turns = np.array(gone if caches[0].rotation is not None else [0] * length, np.int64)
    shape = structs.LayersShape(
        batch,
        length,
        heads.query,
        heads.kv,
        heads.dim,
        heads.scale / plan.temperature,
        address(heads.periods),
        len(heads.periods),
        address(lowest),
        address(turns),
    )
    state = _state(ledger, after)
    done = kernels.layers(shape, weights, found, state, x, finite=plan.check_finite)
    for cache in caches[:done]:
        cache.ledger = after
    if done < len(caches):
        raise not_finite(plan.hot_dtype)
    return True


def _alike(cache: TwoTierKVCache, first: TwoTierKVCache) -> bool:
    """Whether one call does for both what each asks for."""
    plan, other = cache.plan, first.plan
    return (
        cache.ledger == first.ledger
        and plan.temperature == other.temperature
        and plan.check_finite == other.check_finite
        and (cache.rotation is None) == (first.rotation is None)
    )


def _state(before: Ledger, after: Ledger) -> structs.TierState:
    sizes = before.sizes
    return structs.TierState(
        sizes.pinned,
        before.start,
        sizes.block,
        sizes.slots,
        before.total,
        before.first,
        before.end,
        after.first,
        after.end,
    )
