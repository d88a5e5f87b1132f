"""Queries and new tokens as a CPU kernel takes them, alike in all layers of a network.

Knows where tokens are, as the ledger tells, and where they go; no network, and not
what the kernel does before and after.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kvcache.native.structs import HEAD_DIM_STEP, TierStep, address
from kvcache.sight import Sight
from kvcache.tiers.ledger import Ledger
from kvcache.tiers.plan import LayerPlan
from kvcache.turn import Rotation

Integers = npt.NDArray[np.int64]


class Writes(NamedTuple):
    """Numbers of the tokens that are pinned, those that go on in the hot ring, and blocks.

    None where there are none, as for most steps.
    """

    pinned: range | None
    hot: range
    cold: range | None


@dataclass(frozen=True, kw_only=True)
class CpuStep:
    """New tokens of shape [B, Hkv, D], if any, behind those that `before` tells of.

    sight: what each query sees. plan: of a layer that takes them; the others must be
    like it.
    """

    shape: tuple[int, int, int]
    sight: Sight
    before: Ledger
    plan: LayerPlan

    @cached_property
    def after(self) -> Ledger:
        """Where the tokens are once these are appended."""
        return self.before.appended(self.sight.new)

    @cached_property
    def writes(self) -> Writes:
        """What it writes of the memory."""
        before, after = self.before, self.after
        pinned, blocks = range(before.pinned, after.pinned), range(before.end, after.end)
        return Writes(
            pinned=pinned if pinned else None,
            hot=range(max(0, before.total - before.start), after.total - after.start),
            cold=range(max(before.end, after.oldest), after.end) if blocks else None,
        )

    @cached_property
    def is_taken(self) -> bool:
        """Whether kernels take it."""
        dim = self.shape[2]
        turns = 2 * len(self._periods) <= dim
        return turns and not dim % HEAD_DIM_STEP and self.sight.suits_kernels

    def suits(self, ledger: Ledger, plan: LayerPlan, rotation: Rotation | None) -> bool:
        """Whether one call does what this layer asks for, too."""
        # Ledgers of layers that are alike are one object, and to compare them takes time.
        return (
            (ledger is self.before or ledger == self.before)
            and plan.temperature == self.plan.temperature
            and plan.check_finite == self.plan.check_finite
            and _alike(rotation, self.sight.rotation)
        )

    def is_for(
        self, shape: tuple[int, int, int], sight: Sight, ledger: Ledger, plan: LayerPlan
    ) -> bool:
        """Whether a layer asks for this very step."""
        return (
            sight is self.sight and shape == self.shape and self.suits(ledger, plan, sight.rotation)
        )

    def struct(self, *, heads: int, scale: float) -> TierStep:
        """For queries of `heads` heads; what it points to lives as long as this step.

        scale: of scores, the plan's temperature included.
        """
        made = self._structs.get((heads, scale))
        if made is None:
            made = self._structs[heads, scale] = self._struct(heads, scale)
        return made

    @cached_property
    def _structs(self) -> dict[tuple[int, float], TierStep]:
        return {}

    def _struct(self, heads: int, scale: float) -> TierStep:
        (batch, kv_heads, dim), before, after = self.shape, self.before, self.after
        rotation = self.sight.rotation
        return TierStep(
            batch=batch,
            queries=self.sight.queries,
            length=self.sight.new,
            heads=heads,
            kv_heads=kv_heads,
            dim=dim,
            scale=scale,
            finite=self.plan.check_finite,
            periods=address(self._periods),
            pairs=len(self._periods),
            apart=rotation is not None and not rotation.traditional,
            gone=address(self._gone),
            lowest=address(self._lowest),
            pinned=before.sizes.pinned,
            start=before.start,
            block=before.sizes.block,
            slots=before.sizes.cold_memory,
            total=before.total,
            first=before.first,
            end=before.end,
            next_first=after.oldest,
            next_end=after.end,
        )

    @cached_property
    def _periods(self) -> npt.NDArray[np.float64]:
        rotation = self.sight.rotation
        given = () if rotation is None else rotation.periods
        return np.ascontiguousarray(given, np.float64)

    @cached_property
    def _gone(self) -> Integers:
        return np.array(self.sight.gone, np.int64)

    @cached_property
    def _lowest(self) -> Integers:
        return np.array(self.sight.lowest, np.int64)


def _alike(one: Rotation | None, other: Rotation | None) -> bool:
    if one is None or other is None or one is other:
        return one is other
    return one.key == other.key
