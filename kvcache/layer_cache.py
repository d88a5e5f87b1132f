"""One layer's keys and values in tiers: what is appended, attended, held and let go.

    pinned | cold ring of encoded blocks | hot ring | new tokens

On overflow of the hot ring its oldest block is encoded, once, into the cold
ring's next slot; when all slots are taken, the oldest block is overwritten. Where
each token is, `ledger` knows; how it lies in memory, `tiers`; what a query
sees, `sight`. Keys arrive after RoPE; no tokenizer, no model, no file.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from math import inf
from typing import Any, NamedTuple, Self

import mlx.core as mx

from kvcache.checks import check_finite_queries, check_queries, check_tokens, scored
from kvcache.codecs.feedback import LayerMetric
from kvcache.config import Backend, CacheConfig
from kvcache.decoded_window import DecodedWindow
from kvcache.errors import CacheError
from kvcache.given import array, instance, integer, number, optional
from kvcache.reference import Mask, grouped_scores
from kvcache.saved import cold_parts, fill, put_parts, unencoded_tokens
from kvcache.sight import Sight
from kvcache.snapshot import Tokens
from kvcache.stats import CacheStats
from kvcache.tiers.cpu import CpuTiers
from kvcache.tiers.gpu import GpuTiers
from kvcache.tiers.ledger import Ledger
from kvcache.tiers.memory import Tiers
from kvcache.tiers.mlx import MlxTiers
from kvcache.tiers.plan import LayerPlan
from kvcache.tiers.share import Share
from kvcache.turn import Rotation

# New tokens that may stay in memory beside the tiers, of all layers at a time.
_FEW = 8


# New tokens in runs that meet the same blocks: the ledger before each, and how many they are.
Stages = tuple[tuple[Ledger, int], ...]


class Waiting(NamedTuple):
    """Tokens [B, Hkv, L, D], not computed, that are to be written; after: the ledger then."""

    stages: Stages
    after: Ledger
    keys: mx.array
    values: mx.array


class HeldKeys(list[mx.array]):
    """What `cache.keys` is: `cache.keys()` gives the held keys.

    As a list it is an array that stands for them, to which mlx-lm's pipelines tie what their
    ranks send, so that it is computed with the cache: `cache.keys = mx.depends(cache.keys, sent)`.
    """

    def __init__(self, keys: Callable[[], mx.array]) -> None:
        super().__init__([mx.zeros(())])
        self._keys = keys

    def __call__(self) -> mx.array:
        """The held keys [B, Hkv, held, D], oldest first, cold ones decoded, in the hot dtype."""
        return self._keys()


class LayerCache:
    """What `TwoTierKVCache` is to any caller; that adds what mlx-lm, files and kernels need."""

    def __init__(
        self,
        plan: LayerPlan,
        *,
        rotation: Rotation | None = None,
        metric: LayerMetric | None = None,
    ) -> None:
        self.plan, self.metric = instance("plan", plan, LayerPlan), metric
        optional("rotation", rotation, Rotation)
        optional("metric", metric, LayerMetric)
        # The rope, and what of it turns queries for the sinks, read for each token and layer.
        self._rope = rotation
        self.rotation = turning(plan, rotation)
        self.ledger = Ledger(sizes=plan.sizes)
        self._memory = self._make_tiers(plan)
        self._shape: tuple[int, int, int] | None = None  # B, Hkv, D
        self._share: Share | None = None
        self._most_slots = 0  # with a share
        self._waiting: Waiting | None = None
        self._window: DecodedWindow | None = None  # forgotten at each change
        self._tied: list[mx.array] = []  # to be computed with all else

    @classmethod
    def from_config(
        cls, config: CacheConfig, *, layer: int = 0, rotation: Rotation | None = None
    ) -> Self:
        """A cache for a model that is not known: `config` must say `max_tokens`."""
        return cls(LayerPlan.alone(config, layer), rotation=rotation)

    def __repr__(self) -> str:
        keys, values = self.plan.keys, self.plan.values
        return f"{type(self).__name__}({keys}/{values}, {self.stats()})"

    @property
    def offset(self) -> int:
        """Tokens appended, and the position of the next one."""
        return self.ledger.total

    @property
    def room(self) -> int:
        """Tokens that can be appended and taken back (`rewind`) as if they had not come."""
        return self.ledger.room

    # -- what attention needs --

    def append(self, k: mx.array, v: mx.array) -> None:
        """Add L tokens: k and v are [B, Hkv, L, D].

        Raises CacheError, and leaves the cache as it was, for shapes or dtypes that
        do not fit and for numbers that are not finite in the hot dtype.
        """
        self._append(self.checked(array("k", k), array("v", v)))

    def attend_held(self, q: mx.array, *, scale: float, mask: Mask = "causal") -> mx.array:
        """Attend q [B, Hq, L, D] to the held tokens; its last row is the newest token."""
        self._settle()
        held, shape = self.ledger.total, self._shape
        if not held or shape is None:
            raise CacheError("the cache is empty: append keys and values first")
        check_queries(q := array("q", q), shape, held)
        scale, mask = scored(scale, mask, (*q.shape[:3], self.ledger.held))
        return self._attend(q, None, held - q.shape[2], scale, mask)

    def attend(
        self,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        *,
        scale: float,
        mask: Mask = "causal",
        both: mx.array | None = None,
    ) -> mx.array:
        """Attend to the tiers as they are and to the new tokens, unencoded; then `append`.

        mask: an array has a column for each held token in the order of `keys()`,
        then one for each new token. both: k and v once more as one array,
        [2 * B, Hkv, L, D], of which they are views, where the caller has them so.
        """
        # Without a call where all is as networks give it: for each token and layer.
        if not q.__class__ is k.__class__ is v.__class__ is mx.array:
            q, k, v = array("q", q), array("k", k), array("v", v)
        new = self.checked(k, v, both)
        check_queries(q, like(k), k.shape[2])
        usual = mask is None or mask.__class__ is str
        if not (usual and scale.__class__ is float and -inf < scale < inf):
            shape = *q.shape[:3], self.ledger.held + k.shape[2]
            scale, mask = scored(scale, mask, shape)
        return self.attend_checked(q, new, scale=scale, mask=mask)

    def checked(self, k: mx.array, v: mx.array, both: mx.array | None = None) -> Tokens[Any]:
        """New tokens for `attend_checked`. Raises CacheError for what `append` refuses."""
        check_tokens(k, v, self._shape or (1 if self._share else None, None, None))
        if self._shape is None or self._share is not None:
            self._foresee(k)
        if self._waiting is not None:
            self._settle()
        tiers = self._memory
        return tiers.prepare(k, v) if both is None else tiers.prepare_joined(k, v, both)

    def _foresee(self, k: mx.array) -> None:
        """Refuse a D that the codecs do not take; draw on a share what new tokens need."""
        if self.full_plan.sizes.slots:
            self.plan.block_bytes(like(k))
        # Before queries are told what is let go.
        self._make_room(k.shape[2])

    def attend_checked(
        self, q: mx.array, new: Tokens[Any], *, scale: float, mask: Mask = "causal"
    ) -> mx.array:
        """`attend` with tokens and queries that are known to fit."""
        out = self._attend(q, new, self.ledger.total, scale, mask)
        self._append(new)
        return self._memory.after_writes(out) if q.shape[2] > _FEW else out

    def scores(self, q: mx.array, *, scale: float = 1.0) -> mx.array:
        """Scores [B, Hq, L, held] of q [B, Hq, L, D] against `keys()`, before softmax.

        As the codecs estimate them, float32, without a mask; pinned tokens are
        met with the turned queries of the newest position.
        """
        keys, pinned = self.keys().astype(mx.float32), self.ledger.pinned
        q = array("q", q)
        # Any number of queries: each is of the newest position.
        check_queries(q, like(keys), max(1, q.shape[-2] if q.ndim == 4 else 1))
        q = q.astype(mx.float32) * (number("scale", scale) / self.plan.temperature)
        by = [-self.ledger.evicted] * q.shape[2]
        turned = q if self.rotation is None else self.rotation(q, by)
        parts = (turned, keys[:, :, :pinned]), (q, keys[:, :, pinned:])
        return mx.concatenate([grouped_scores(*part) for part in parts], axis=-1)

    # -- what is held --

    @property
    def keys(self) -> HeldKeys:
        """Called, the held keys [B, Hkv, held, D], oldest first, cold ones decoded."""
        return HeldKeys(lambda: self._held().keys)

    @keys.setter
    def keys(self, tied: list[mx.array]) -> None:
        self._tied = tied

    def values(self) -> mx.array:
        """The held values, like `keys()`."""
        return self._held().values

    def stats(self) -> CacheStats:
        """Tokens and bytes by tier; evaluates nothing, may be called from any thread."""
        ledger, tiers = self.ledger, self._memory
        token = self.plan.token_bytes(self._shape) if self._shape else 0
        keys, values = self.plan.block_shares(self._shape) if self._shape else (0, 0)
        block, blocks, unencoded = (
            keys + values,
            ledger.end - ledger.first,
            ledger.pinned + ledger.hot,
        )
        return CacheStats(
            total=ledger.total,
            sink=ledger.pinned,
            hot=ledger.hot,
            cold=ledger.cold,
            evicted=ledger.evicted,
            sink_bytes=ledger.pinned * token,
            hot_bytes=ledger.hot * token,
            cold_bytes=blocks * block,
            allocated_bytes=tiers.allocated_tokens * token + tiers.allocated_blocks * block,
            fp16_bytes=ledger.held * token * mx.float16.size // self.plan.hot_dtype.mx.size,
            sinks_turned=self.plan.turn_sinks and self._rope is not None,
            plain=self._shape is not None and tiers.is_reference(self._shape[2]),
            key_bytes=unencoded * (token // 2) + blocks * keys,
            value_bytes=unencoded * (token // 2) + blocks * values,
        )

    @property
    def kv_heads(self) -> int:
        """KV heads; 1 before the first token."""
        return self._shape[1] if self._shape else 1

    @property
    def nbytes(self) -> int:
        """Bytes of the allocated memory."""
        return self.stats().allocated_bytes

    def size(self) -> int:
        """Tokens held."""
        return self.ledger.held

    def empty(self) -> bool:
        """Whether nothing is held."""
        return not self.ledger.held

    # -- changes of what is held --

    def clear(self) -> None:
        """Forget all tokens and keep the memory."""
        self.ledger, self._waiting = Ledger(sizes=self.plan.sizes), None

    def reset(self) -> None:
        """Forget all tokens and give the memory back."""
        self.clear()
        self._memory, self._window = self._make_tiers(self.plan), None
        self._shape = None

    def rewind(self, tokens: int) -> int:
        """Go back at least `tokens`, and return how many were dropped.

        Exactly, among hot tokens; else to the edge of a cold block, or to the
        pinned tokens when what came before is evicted. A layer with a window: exactly
        where the window is still held, else to the beginning. Layers of a model may so
        differ: `prompt_cache.rewind` takes all of them.
        """
        tokens = integer("tokens", tokens)
        self._settle()
        before, self.ledger = self.ledger, _rewound(self.ledger, tokens)
        if self.ledger.hot and self.ledger.end < before.end:
            self._memory.take_back(before, self.ledger)
        return before.total - self.ledger.total

    def set_policy(self, plan: LayerPlan) -> None:
        """Move to another plan: all held tokens stay, encoded again, that it has room for.

        Raises CacheError, and changes nothing, for other pinned tokens than before
        once any token was let go, or where the new plan cannot hold such tokens.
        """
        instance("plan", plan, LayerPlan)
        if self._share is not None:
            raise CacheError("got a plan for a cache of a shared budget, which keeps its own")
        ledger, tiers = self.ledger.resized(plan.sizes), self._make_tiers(plan)
        if ledger.held:
            tiers.fill(ledger, *self._held())
        self.plan, self.ledger, self._memory, self._window = plan, ledger, tiers, None
        self.rotation = turning(plan, self._rope)

    # -- a budget that chats share --

    def draw_on(self, share: Share) -> None:
        """Forget all tokens, and take cold blocks from a share as they are needed."""
        if self.plan.sizes.window is None:
            self._share, self._most_slots = share, self.plan.sizes.slots
            self.plan = self._with_slots(0)
        self.reset()

    def leave_share(self) -> None:
        """Forget all tokens, give the share back, and be as the cache was before."""
        if self._share is not None:
            self._share.end()
            self.plan, self._share = self.full_plan, None
        self.reset()

    @property
    def full_plan(self) -> LayerPlan:
        """The plan, with all cold blocks that it may come to draw on a share."""
        return self.plan if self._share is None else self._with_slots(self._most_slots)

    def _with_slots(self, slots: int) -> LayerPlan:
        return replace(self.plan, sizes=replace(self.plan.sizes, slots=slots))

    def _hold_at_most(self, slots: int) -> None:
        """Have room for so many cold blocks, more than there were."""
        plan = self._with_slots(slots)
        ledger, tiers = replace(self.ledger, sizes=plan.sizes), self._make_tiers(plan)
        if self._shape is not None and ledger.held:
            # Down to what can be trimmed.
            first, end, low = ledger.floor.first, ledger.end, ledger.floor.end
            unencoded = unencoded_tokens(self._tiers, replace(self.ledger, first=first, end=low))
            fill(tiers, replace(ledger, first=first, end=low), unencoded)
            if first < end:
                parts = cold_parts(self._tiers, self.ledger, first, end)
                put_parts(tiers, plan, first, parts, self._shape[2])
        self.plan, self.ledger, self._memory, self._window = plan, ledger, tiers, None

    def _make_room(self, tokens: int) -> None:
        """Draw on the share, if there is one, what so many more tokens need."""
        if self._share is None:
            return
        after = replace(self.ledger, sizes=self.full_plan.sizes).appended(tokens)
        slots = self._share.slots_at(after.total, after.end - after.first, self._most_slots)
        if slots > self.plan.sizes.slots:
            self._hold_at_most(slots)

    # -- inside --

    @property
    def _tiers(self) -> Tiers[Any]:
        """The memory, once what waits is written to it."""
        if self._waiting is not None:
            self._settle()
        return self._memory

    def _settle(self) -> None:
        """Write what waits. Raises CacheError, as if it had never come, where it is refused."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            new, done = self._prepared(waiting), 0
            for ledger, count in waiting.stages:
                some = new.cut(done, done + count)
                self._memory.append(ledger, appended(ledger, count), some)
                done += count

    def _prepared(self, waiting: Waiting) -> Tokens[Any]:
        """What waited, ready to be written. Raises CacheError as `_settle` does."""
        try:
            return self._memory.prepare(waiting.keys, waiting.values)
        except CacheError:
            if self.ledger is waiting.after:
                self.ledger = waiting.stages[0][0]
            raise

    def _make_tiers(self, plan: LayerPlan) -> Tiers[Any]:
        return make_tiers(plan, self.metric)

    def _append(self, new: Tokens[Any]) -> None:
        after, self._shape = appended(self.ledger, new.length), like(new.keys)
        self._memory.append(self.ledger, after, new)
        self.ledger, self._window = after, None

    def _attend(
        self, q: mx.array, new: Tokens[Any] | None, position: int, scale: float, mask: Mask
    ) -> mx.array:
        if self.plan.check_finite:
            check_finite_queries(q)
        count = 0 if new is None else new.length
        sight = self._sight(self.ledger, position, q.shape[2], new=count, mask=mask)
        return self._memory.attend(q, self.ledger, new, sight, scale / self.plan.temperature)

    def _sight(self, ledger: Ledger, position: int, queries: int, *, new: int, mask: Mask) -> Sight:
        if (mask is None and queries == 1) or (isinstance(mask, str) and mask == "causal"):
            return _causal_sight(ledger, position, queries, new, self.rotation)
        return ledger.sight(position, queries, new=new, mask=mask, rotation=self.rotation)

    def _held(self) -> Tokens[mx.array]:
        if not self.ledger.held:
            raise CacheError("the cache is empty: append keys and values first")
        return self._tiers.snapshot(self.ledger).decoded(self.plan.hot_dtype.mx)


def turning(plan: LayerPlan, rope: Rotation | None) -> Rotation | None:
    """What turns queries for sinks, if there are any and the rope turns at all."""
    turns = plan.turn_sinks and rope is not None and len(rope.periods) > 0
    return rope if turns and plan.sizes.window is None else None


# The layers of a model ask for the same, one after the other, and so share one ledger.
appended = lru_cache(maxsize=16)(Ledger.appended)
_rewound = lru_cache(maxsize=16)(Ledger.rewound)


@lru_cache(maxsize=16)
def _causal_sight(
    ledger: Ledger, position: int, queries: int, new: int, rotation: Rotation | None
) -> Sight:
    return ledger.sight(position, queries, new=new, rotation=rotation)


def like(k: mx.array) -> tuple[int, int, int]:
    """B, Hkv and D of tokens [B, Hkv, L, D]."""
    batch, heads, _, dim = k.shape
    return batch, heads, dim


def make_tiers(plan: LayerPlan, metric: LayerMetric | None = None) -> Tiers[Any]:
    """Empty tiers of the kind that the plan's backend works on."""
    if plan.backend is Backend.CPU:
        return CpuTiers(plan, metric)
    return GpuTiers(plan, metric) if plan.backend is Backend.GPU else MlxTiers(plan, metric)
