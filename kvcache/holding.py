"""What one layer's cache holds, and what becomes of it: tiers, their ledger, and what waits.

Where each token is, `ledger` knows; how it lies in memory, `tiers`. Knows no attention.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple, Self

import mlx.core as mx

from kvcache.codecs.feedback import LayerMetric
from kvcache.config import Backend, CacheConfig
from kvcache.errors import CacheError
from kvcache.fetched.decoded_window import DecodedWindow
from kvcache.given import instance, integer, optional
from kvcache.saved import cold_parts, fill, put_parts, unencoded_tokens
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


class HoldingCache:
    """What a `LayerCache` holds; that adds attention."""

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

    def places(self) -> dict[int, int]:
        """The bytes of what was written by where it lies; copies share what neither wrote since."""
        if self._shape is None:
            return {}
        token, block = self.plan.token_bytes(self._shape), sum(self.plan.block_shares(self._shape))
        return self._memory.places(token=token, block=block)

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
    def draws_on_share(self) -> bool:
        """Whether its cold blocks are of a budget that chats share."""
        return self._share is not None

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
        share, total = self._share, self.ledger.total + tokens
        if share is None:
            return
        if share.settled != total:
            after = replace(self.ledger, sizes=self.full_plan.sizes).appended(tokens)
            share.settle(total, after.end - after.first, self._most_slots)
        if share.slots > self.plan.sizes.slots:
            self._hold_at_most(share.slots)

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


def like(k: mx.array) -> tuple[int, int, int]:
    """B, Hkv and D of tokens [B, Hkv, L, D]."""
    batch, heads, _, dim = k.shape
    return batch, heads, dim


def make_tiers(plan: LayerPlan, metric: LayerMetric | None = None) -> Tiers[Any]:
    """Empty tiers of the kind that the plan's backend works on."""
    if plan.backend is Backend.CPU:
        return CpuTiers(plan, metric)
    return GpuTiers(plan, metric) if plan.backend is Backend.GPU else MlxTiers(plan, metric)
