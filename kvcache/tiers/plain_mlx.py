"""A layer's tiers in MLX arrays, attended by plain MLX operations or on the GPU."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import mlx.core as mx

from kvcache.checks import check_finite
from kvcache.codecs.base import Encoded
from kvcache.tiers.cold_ring import ColdRing
from kvcache.tiers.ledger import Ledger
from kvcache.tiers.memory import Attend, Tiers, TierView, Tokens
from kvcache.tiers.plan import LayerPlan
from kvcache.tiers.sight import Piece, Sight, split_pinned
from kvcache.tiers.tier_attention import attend_tiers
from kvcache.tiers.token_ring import TokenRing
from kvcache.turn import Rotation


class DeviceTokens(NamedTuple):
    """Keys and values [B, Hkv, L, D]."""

    keys: mx.array
    values: mx.array

    @property
    def length(self) -> int:
        """L."""
        return self.keys.shape[2]

    def cut(self, start: int, stop: int) -> "DeviceTokens":
        """The tokens [start, stop)."""
        return DeviceTokens(self.keys[:, :, start:stop], self.values[:, :, start:stop])


class DeviceTiers(Tiers[DeviceTokens]):
    """Every write makes new arrays, so a view stays what it was."""

    def __init__(self, plan: LayerPlan) -> None:
        self.sizes = plan.sizes
        self._dtype, self._check = plan.hot_dtype, plan.check_finite
        self._pinned = TokenRing(plan.sizes.pinned, dtype=plan.hot_dtype.mx)
        self._hot = TokenRing(plan.sizes.ring, dtype=plan.hot_dtype.mx)
        self._cold = ColdRing(
            plan.sizes.slots,
            block=plan.sizes.block,
            keys=plan.key_codec,
            values=plan.value_codec,
        )

    def prepare(self, k: mx.array, v: mx.array) -> DeviceTokens:
        if self._check:
            check_finite(k, v, self._dtype, on_host=False)
        return self.run((k, v))

    def run(self, tokens: Tokens) -> DeviceTokens:
        return DeviceTokens(*(array.astype(self._dtype.mx) for array in tokens))

    def arrays(self, run: DeviceTokens) -> Tokens:
        return run.keys, run.values

    def joined(self, runs: Sequence[DeviceTokens]) -> DeviceTokens:
        keys = mx.concatenate([run.keys for run in runs], axis=2)
        return DeviceTokens(keys, mx.concatenate([run.values for run in runs], axis=2))

    def attending(self, ledger: Ledger, new: DeviceTokens | None) -> Attend:
        return partial(attend_view, new, self.view(ledger))

    def is_plain(self, dim: int) -> bool:
        return True

    def view(self, ledger: Ledger) -> TierView:
        pieces = []
        if ledger.sink:
            keys, values = self._pinned.read(0, ledger.sink)
            pieces.append(Piece(keys=keys, values=values, position=0, pinned=True))
        if ledger.hot:
            keys, values = self._hot.read(ledger.hot_number, ledger.hot)
            pieces.append(Piece(keys=keys, values=values, position=ledger.hot_start))
        cold = self._cold.view(ledger.first, ledger.end) if ledger.cold else None
        return TierView(pieces=pieces, cold=cold)

    def read_hot(self, number: int, count: int) -> DeviceTokens:
        return DeviceTokens(*self._hot.read(number, count))

    def write_pinned(self, position: int, run: DeviceTokens) -> None:
        self._pinned.write(position, *run)

    def write_hot(self, number: int, run: DeviceTokens) -> None:
        self._hot.write(number, *run)

    def write_cold(self, number: int, run: DeviceTokens) -> None:
        self._cold.write(number, *run)

    def put_cold(self, number: int, keys: Encoded, values: Encoded) -> None:
        self._cold.put(number, keys, values)

    def pending(self) -> list[mx.array]:
        return [*self._pinned.pending(), *self._hot.pending(), *self._cold.pending()]

    @property
    def allocated_tokens(self) -> int:
        return self._pinned.allocated + self._hot.allocated

    @property
    def allocated_blocks(self) -> int:
        return self._cold.allocated


def attend_view(
    new: Tokens | None,
    view: TierView,
    q: mx.array,
    sight: Sight,
    rotation: Rotation | None,
    scale: float,
) -> mx.array:
    """Attention over a view and new tokens in plain MLX operations."""
    fresh = [] if new is None else split_pinned(*new, sight.position, sight.ledger.sizes.pinned)
    return attend_tiers(
        q,
        q if rotation is None else rotation(q, sight.turns),
        pieces=[*view.pieces, *fresh],
        cold=view.cold,
        sight=sight,
        scale=scale,
    )
