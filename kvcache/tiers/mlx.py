"""A layer's tiers in MLX arrays, attended by plain MLX operations."""

import mlx.core as mx

from kvcache.checks import check_finite
from kvcache.codecs.base import Encoded
from kvcache.codecs.feedback import LayerMetric
from kvcache.snapshot import Joined, Snapshot, Tokens
from kvcache.tiers.cold_ring import ColdRing
from kvcache.tiers.ledger import Ledger
from kvcache.tiers.memory import Tiers
from kvcache.tiers.plan import LayerPlan
from kvcache.tiers.token_ring import TokenRing

MlxTokens = Tokens[mx.array]


class MlxTiers(Tiers[mx.array]):
    """Every write makes new arrays, so a snapshot stays what it was."""

    def __init__(self, plan: LayerPlan, metric: LayerMetric | None = None) -> None:
        self.sizes = plan.sizes
        self._dtype, self._check = plan.hot_dtype, plan.check_finite
        self._pinned = TokenRing(plan.sizes.pinned, dtype=plan.hot_dtype.mx)
        self._hot = TokenRing(plan.sizes.hot_memory, dtype=plan.hot_dtype.mx)
        codecs = plan.codecs_in(metric)
        self._cold = ColdRing(plan.sizes.cold_memory, block=plan.sizes.block, codecs=codecs)

    def prepare(self, k: mx.array, v: mx.array) -> MlxTokens:
        if self._check:
            check_finite(k, v, self._dtype, on_cpu=False)
        return Tokens(k.astype(self._dtype.mx), v.astype(self._dtype.mx))

    def prepare_joined(self, k: mx.array, v: mx.array, both: mx.array) -> MlxTokens:
        if both.dtype != self._dtype.mx:
            k, v = mx.split(both := both.astype(self._dtype.mx), 2)
        if self._check:
            check_finite(k, v, self._dtype, on_cpu=False)
        return Joined.of(k, v, both)

    def snapshot(self, ledger: Ledger, new: MlxTokens | None = None) -> Snapshot:
        return Snapshot(ledger.bounds, self._cold.held, self._pinned.tokens, self._hot.tokens, new)

    def is_reference(self, dim: int) -> bool:
        return True

    def read_hot(self, number: int, count: int) -> MlxTokens:
        return self._hot.read(number, count)

    def write_pinned(self, position: int, tokens: MlxTokens) -> None:
        self._pinned.write(position, tokens)

    def write_hot(self, number: int, tokens: MlxTokens) -> None:
        self._hot.write(number, tokens)

    def write_cold(self, number: int, tokens: MlxTokens) -> None:
        self._cold.write(number, tokens)

    def put_cold(self, number: int, keys: Encoded, values: Encoded) -> None:
        self._cold.put(number, keys, values)

    def share_with(self, other: Tiers[mx.array]) -> None:
        assert isinstance(other, MlxTiers), "tiers of another kind"
        other._pinned.tokens, other._hot.tokens = self._pinned.tokens, self._hot.tokens
        other._cold.held = self._cold.held

    def places(self, *, token: int, block: int) -> dict[int, int]:
        rings = (self._pinned, self._hot)
        found = {id(ring.tokens): ring.allocated * token for ring in rings if ring.tokens}
        return found | self._cold.places(block)

    def pending(self) -> list[mx.array]:
        unencoded = [ring.tokens.both for ring in (self._pinned, self._hot) if ring.tokens]
        return [*unencoded, *self._cold.pending()]

    def after_writes(self, out: mx.array) -> mx.array:
        after: mx.array = mx.depends(out, self.pending())
        return after

    @property
    def allocated_tokens(self) -> int:
        return self._pinned.allocated + self._hot.allocated

    @property
    def allocated_blocks(self) -> int:
        return self._cold.allocated
