"""The two-tier cache of one layer: unencoded sinks and recent tokens, encoded older ones.

    pinned | cold ring of encoded blocks | hot ring | new tokens

On overflow of the hot ring its oldest block is encoded, once, into the cold
ring's next slot; when all slots are taken, the oldest block is overwritten. Where
each token is, `ledger` knows; how it lies in memory, `tiers`; what a query
sees, `sight`. Keys arrive after RoPE; no tokenizer, no model.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from math import inf
from typing import Any

import mlx.core as mx

from kvcache.checks import check_finite_queries, check_queries, check_tokens, scored
from kvcache.codecs.base import ArraySpec
from kvcache.codecs.feedback import LayerMetric
from kvcache.config import Backend, CacheConfig
from kvcache.errors import CacheError
from kvcache.given import array, instance, integer, number, optional
from kvcache.native.structs import TierMemory
from kvcache.reference import Mask, grouped_scores
from kvcache.saved import (
    Saved,
    State,
    cold_parts,
    dump,
    fill,
    part_specs,
    policy,
    put_parts,
    restore,
    unencoded_tokens,
)
from kvcache.sight import Sight
from kvcache.snapshot import Snapshot, Tokens
from kvcache.stats import CacheStats
from kvcache.tiers.cpu import CpuTiers
from kvcache.tiers.cpu_step import CpuStep
from kvcache.tiers.gpu import GpuTiers
from kvcache.tiers.ledger import Ledger
from kvcache.tiers.memory import Tiers
from kvcache.tiers.mlx import MlxTiers
from kvcache.tiers.plan import LayerPlan
from kvcache.turn import Rotation

# New tokens that may stay in memory beside the tiers, of all layers at a time.
_FEW = 8


class TwoTierKVCache:
    """Keys and values of one layer, bounded by its plan however long the chat.

    rotation: the layer's rope, so that sinks stay inside the window. None, for
    an unknown rope, attends to them at their true distance; `stats` says which.
    So does `NO_ROPE`, where distance is nothing.
    metric: of the layer's queries, by which keys are encoded (`codecs.feedback`), whatever
    plan or state comes later. None rounds them plainly.
    keeps_snapshot: whether `update_and_fetch` leaves what `attend_fetched` needs.
    """

    keeps_snapshot = False

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
        self.rotation = _turning(plan, rotation)
        self.ledger = Ledger(sizes=plan.sizes)
        self._tiers = self._make_tiers(plan)
        self._shape: tuple[int, int, int] | None = None  # B, Hkv, D
        self._fetched: tuple[Ledger, Snapshot] | None = None

    @classmethod
    def from_config(
        cls, config: CacheConfig, *, layer: int = 0, rotation: Rotation | None = None
    ) -> "TwoTierKVCache":
        """A cache for a model that is not known: `config` must say `max_tokens`."""
        return cls(LayerPlan.alone(config, layer), rotation=rotation)

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
        check_queries(q, _like(k), k.shape[2])
        usual = mask is None or mask.__class__ is str
        if not (usual and scale.__class__ is float and -inf < scale < inf):
            shape = *q.shape[:3], self.ledger.held + k.shape[2]
            scale, mask = scored(scale, mask, shape)
        return self.attend_checked(q, new, scale=scale, mask=mask)

    def checked(self, k: mx.array, v: mx.array, both: mx.array | None = None) -> Tokens[Any]:
        """New tokens for `attend_checked`. Raises CacheError for what `append` refuses."""
        check_tokens(k, v, self._shape or (None, None, None))
        if self._shape is None and self.plan.sizes.slots:
            self.plan.block_bytes(_like(k))  # refuses a D that the codecs do not take
        tiers = self._tiers
        return tiers.prepare(k, v) if both is None else tiers.prepare_joined(k, v, both)

    def attend_checked(
        self, q: mx.array, new: Tokens[Any], *, scale: float, mask: Mask = "causal"
    ) -> mx.array:
        """`attend` with tokens and queries that are known to fit."""
        out = self._attend(q, new, self.ledger.total, scale, mask)
        self._append(new)
        return self._tiers.after_writes(out) if q.shape[2] > _FEW else out

    def scores(self, q: mx.array, *, scale: float = 1.0) -> mx.array:
        """Scores [B, Hq, L, held] of q [B, Hq, L, D] against `keys()`, before softmax.

        As the codecs estimate them, float32, without a mask; pinned tokens are
        met with the turned queries of the newest position.
        """
        keys, pinned = self.keys().astype(mx.float32), self.ledger.pinned
        q = array("q", q)
        # Any number of queries: each is of the newest position.
        check_queries(q, _like(keys), max(1, q.shape[-2] if q.ndim == 4 else 1))
        q = q.astype(mx.float32) * (number("scale", scale) / self.plan.temperature)
        by = [-self.ledger.evicted] * q.shape[2]
        turned = q if self.rotation is None else self.rotation(q, by)
        parts = (turned, keys[:, :, :pinned]), (q, keys[:, :, pinned:])
        return mx.concatenate([grouped_scores(*part) for part in parts], axis=-1)

    # -- what is held --

    def keys(self) -> mx.array:
        """The held keys [B, Hkv, held, D], oldest first, cold ones decoded, in the hot dtype."""
        return self._held().keys

    def values(self) -> mx.array:
        """The held values, like `keys`."""
        return self._held().values

    def stats(self) -> CacheStats:
        """Tokens and bytes by tier; evaluates nothing, may be called from any thread."""
        ledger, tiers = self.ledger, self._tiers
        token = self.plan.token_bytes(self._shape) if self._shape else 0
        block = self.plan.block_bytes(self._shape) if self._shape else 0
        return CacheStats(
            total=ledger.total,
            sink=ledger.pinned,
            hot=ledger.hot,
            cold=ledger.cold,
            evicted=ledger.evicted,
            sink_bytes=ledger.pinned * token,
            hot_bytes=ledger.hot * token,
            cold_bytes=(ledger.end - ledger.first) * block,
            allocated_bytes=tiers.allocated_tokens * token + tiers.allocated_blocks * block,
            fp16_bytes=ledger.held * token * mx.float16.size // self.plan.hot_dtype.mx.size,
            sinks_turned=self.plan.turn_sinks and self._rope is not None,
            plain=self._shape is not None and tiers.is_reference(self._shape[2]),
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
        self.ledger = Ledger(sizes=self.plan.sizes)

    def reset(self) -> None:
        """Forget all tokens and give the memory back."""
        self.clear()
        self._tiers = self._make_tiers(self.plan)
        self._shape = None

    def rewind(self, tokens: int) -> int:
        """Go back at least `tokens`, and return how many were dropped.

        Exactly, among hot tokens; else to the edge of a cold block, or to the
        pinned tokens when what came before is evicted. A layer with a window: exactly
        where the window is still held, else to the beginning. Layers of a model may so
        differ: `prompt_cache.rewind` takes all of them.
        """
        tokens = integer("tokens", tokens)
        before, self.ledger = self.ledger, _rewound(self.ledger, tokens)
        if self.ledger.hot and self.ledger.end < before.end:
            self._tiers.take_back(before, self.ledger)
        return before.total - self.ledger.total

    def set_policy(self, plan: LayerPlan) -> None:
        """Move to another plan: all held tokens stay, encoded again, that it has room for.

        Raises CacheError, and changes nothing, for other pinned tokens than before
        once any token was let go, or where the new plan cannot hold such tokens.
        """
        instance("plan", plan, LayerPlan)
        ledger, tiers = self.ledger.resized(plan.sizes), self._make_tiers(plan)
        if ledger.held:
            tiers.fill(ledger, *self._held())
        self.plan, self.ledger, self._tiers = plan, ledger, tiers
        self.rotation = _turning(plan, self._rope)

    # -- mlx-lm's cache contract --

    def update_and_fetch(self, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        """Append; returns the tokens that `attend` would see, [B, Hkv, held + L, D].

        Pinned keys come turned the other way, for models that attend with one
        query only.
        """
        k, v = array("k", k), array("v", v)
        new, ledger = self.checked(k, v), self.ledger
        snapshot = self._tiers.snapshot(ledger, new)
        keys, values = snapshot.decoded(self.plan.hot_dtype.mx)
        pinned = min(self.plan.sizes.pinned, keys.shape[2])
        if ledger.evicted and self.rotation is not None:
            ahead = self.rotation(keys[:, :, :pinned], [ledger.evicted] * pinned)
            keys = mx.concatenate([ahead, keys[:, :, pinned:]], axis=2)
        self._fetched = (ledger, snapshot) if self.keeps_snapshot else None
        self._append(new)
        return keys.astype(k.dtype), values.astype(v.dtype)

    def attend_fetched(self, q: mx.array, *, scale: float, mask: Mask) -> mx.array | None:
        """Attend to what the last `update_and_fetch` returned, without decoding it whole.

        Once for each fetch; None where there is none.
        """
        fetched, self._fetched = self._fetched, None
        if fetched is None:
            return None
        ledger, held = fetched
        position, queries, new = ledger.total, q.shape[2], held.new_count
        sight = self._sight(ledger, position, queries, new=new, mask="causal")
        # The array that `make_mask` gave says no more, and kernels take no array.
        if mask is None or (isinstance(mask, mx.array) and mask is not sight.whole):
            sight = self._sight(ledger, position, queries, new=new, mask=mask)
        return self._tiers.attend_snapshot(q, held, sight, scale / self.plan.temperature)

    def make_mask(
        self, length: int, return_array: bool = False, window_size: int | None = None
    ) -> Mask:
        """The mask of `length` tokens about to be appended.

        window_size: of a layer that sees no more tokens; nothing is hidden for it where the
        plan has seen to that.
        """
        ledger, sizes, length = self.ledger, self.plan.sizes, integer("length", length)
        if window_size is not None and (sizes.window or sizes.max_tokens) <= window_size:
            window_size = None
        sight = self._sight(ledger, ledger.total, length, new=length, mask="causal")
        if sight.is_whole and not return_array and window_size is None:
            return None if length == 1 else "causal"
        return sight.full(window_size)

    def is_trimmable(self) -> bool:
        """Whether any number of tokens can be trimmed: while none was encoded."""
        return self.ledger.is_whole

    def trim(self, n: int) -> int:
        """Drop the newest `n` tokens, or as many as can be; returns how many were dropped.

        Those are the hot ones, or, with a window, those without which it is whole.
        """
        return self.rewind(min(max(integer("n", n, least=None), 0), self.ledger.droppable))

    @property
    def state(self) -> State:
        """Everything the cache is, as `saved` lays it out."""
        return dump(
            Saved(
                plan=self.plan,
                ledger=self.ledger,
                tiers=self._tiers,
                rotation=self._rope,
                shape=self._shape,
            )
        )

    @state.setter
    def state(self, value: State) -> None:
        self._take(restore(value, self._make_tiers, self.plan.backend))

    @classmethod
    def from_state(
        cls,
        state: State,
        *,
        backend: Backend = Backend.AUTO,
        metric: LayerMetric | None = None,
    ) -> "TwoTierKVCache":
        """A cache with a saved state, for any backend (mlx-lm's `load_prompt_cache`)."""
        saved = restore(state, partial(make_tiers, metric=metric), backend)
        cache = cls(saved.plan, metric=metric)
        cache._take(saved)
        return cache

    def __deepcopy__(self, _memo: dict[int, Any]) -> "TwoTierKVCache":
        return self.from_state(self.state, backend=self.plan.backend, metric=self.metric)

    def _make_tiers(self, plan: LayerPlan) -> Tiers[Any]:
        return make_tiers(plan, self.metric)

    def _take(self, saved: Saved) -> None:
        self.plan, self.ledger, self._tiers = saved.plan, saved.ledger, saved.tiers
        self._rope, self._shape = saved.rotation, saved.shape
        self.rotation = _turning(self.plan, self._rope)
        self._fetched = None

    # -- a state piece by piece, for who keeps blocks apart --

    def unencoded(self) -> list[mx.array | None]:
        """Pinned keys and values, then hot ones, [B, Hkv, S, D]; None where there are none."""
        return unencoded_tokens(self._tiers, self.ledger)

    def parts(self, first: int, end: int) -> list[mx.array]:
        """Of the cold blocks [first, end): parts [blocks, B, Hkv, ...] of keys, then of values."""
        return cold_parts(self._tiers, self.ledger, first, end)

    @property
    def policy(self) -> str:
        """All that another cache must share to hold what this one held, as text."""
        return policy(self.plan, self._rope)

    def part_specs(self, dim: int) -> list[tuple[str, ArraySpec]]:
        """What `parts` gives where D is `dim`: a name for each, and what follows Hkv."""
        return part_specs(self.plan, dim)

    def hold(
        self, ledger: Ledger, shape: tuple[int, int, int], unencoded: Sequence[mx.array | None]
    ) -> None:
        """Forget all, and hold what a ledger says of tokens of shape [B, Hkv, D].

        unencoded: as above; cold blocks come by `put_parts`. Raises CacheError for a ledger of
        other sizes, and, holding nothing then, for numbers that are not finite.
        """
        if ledger.sizes != self.plan.sizes or (self._shape or shape) != shape:
            raise CacheError(f"got tokens {shape} in {ledger.sizes}, expected {self.plan.sizes}")
        ledger.check()
        self.clear()
        fill(self._tiers, ledger, unencoded)
        self.ledger, self._shape, self._fetched = ledger, shape, None

    def put_parts(self, number: int, parts: Sequence[mx.array]) -> None:
        """Put cold blocks from a block number, all of which `hold` has told of."""
        assert self._shape is not None, "blocks before `hold`"
        put_parts(self._tiers, self.plan, number, parts, self._shape[2])

    def pending(self) -> list[mx.array]:
        """Arrays to evaluate before the next step; cheaper than `state`, which copies."""
        return self._tiers.pending()

    # -- tokens that a network's own kernel appends --

    def steps(self, shape: tuple[int, int, int], length: int) -> list[CpuStep]:
        """`length` new tokens of shape [B, Hkv, D], for a kernel that runs all layers.

        Empty where kernels do not take them and each layer must `attend`. Else all layers
        `lend`, the kernel attends and writes, and they are told by `commit`.
        """
        sight = self._sight(self.ledger, self.ledger.total, length, new=length, mask="causal")
        step = CpuStep(shape=shape, sight=sight, before=self.ledger, plan=self.plan)
        return [step] if step.is_taken else []

    def lend(self, steps: Sequence[CpuStep]) -> list[TierMemory]:
        """The memory, with room for the tokens of a step, to a kernel that writes them.

        Empty where this layer is unlike the step's, or holds what kernels do not read.
        """
        tiers = self._tiers
        if len(steps) != 1 or not isinstance(tiers, CpuTiers):
            return []
        (step,), shape = steps, self._shape or steps[0].shape
        suits = shape == step.shape and step.suits(self.ledger, self.plan, self.rotation)
        memory = tiers.struct(shape) if suits else None
        if memory is None:
            return []
        self._shape = shape
        if step.after.end > self.ledger.end:
            tiers.reserve(max(self.ledger.end, step.after.first), step.after.end)
        return [memory]

    def commit(self, steps: Sequence[CpuStep]) -> None:
        """The tokens of a step were written to the lent memory."""
        (step,) = steps
        self.ledger = step.after

    # -- inside --

    def _append(self, new: Tokens[Any]) -> None:
        after, self._shape = _appended(self.ledger, new.length), _like(new.keys)
        self._tiers.append(self.ledger, after, new)
        self.ledger = after

    def _attend(
        self, q: mx.array, new: Tokens[Any] | None, position: int, scale: float, mask: Mask
    ) -> mx.array:
        if self.plan.check_finite:
            check_finite_queries(q)
        count = 0 if new is None else new.length
        sight = self._sight(self.ledger, position, q.shape[2], new=count, mask=mask)
        return self._tiers.attend(q, self.ledger, new, sight, scale / self.plan.temperature)

    def _sight(self, ledger: Ledger, position: int, queries: int, *, new: int, mask: Mask) -> Sight:
        if (mask is None and queries == 1) or (isinstance(mask, str) and mask == "causal"):
            return _causal_sight(ledger, position, queries, new, self.rotation)
        return ledger.sight(position, queries, new=new, mask=mask, rotation=self.rotation)

    def _held(self) -> Tokens[mx.array]:
        if not self.ledger.held:
            raise CacheError("the cache is empty: append keys and values first")
        return self._tiers.snapshot(self.ledger).decoded(self.plan.hot_dtype.mx)


def _turning(plan: LayerPlan, rope: Rotation | None) -> Rotation | None:
    """What turns queries for sinks, if there are any and the rope turns at all."""
    turns = plan.turn_sinks and rope is not None and len(rope.periods) > 0
    return rope if turns and plan.sizes.window is None else None


# The layers of a model ask for the same, one after the other, and so share one ledger.
_appended = lru_cache(maxsize=16)(Ledger.appended)
_rewound = lru_cache(maxsize=16)(Ledger.rewound)


@lru_cache(maxsize=16)
def _causal_sight(
    ledger: Ledger, position: int, queries: int, new: int, rotation: Rotation | None
) -> Sight:
    return ledger.sight(position, queries, new=new, rotation=rotation)


def _like(k: mx.array) -> tuple[int, int, int]:
    """B, Hkv and D of tokens [B, Hkv, L, D]."""
    batch, heads, _, dim = k.shape
    return batch, heads, dim


def make_tiers(plan: LayerPlan, metric: LayerMetric | None = None) -> Tiers[Any]:
    """Empty tiers of the kind that the plan's backend works on."""
    if plan.backend is Backend.CPU:
        return CpuTiers(plan, metric)
    return GpuTiers(plan, metric) if plan.backend is Backend.GPU else MlxTiers(plan, metric)
