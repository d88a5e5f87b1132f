"""The two-tier cache of one layer, as mlx-lm's models, files and networks' kernels take it.

What it holds, and what of it queries meet, is `layer_cache`'s.
"""

import warnings
from collections.abc import Sequence
from functools import cache, lru_cache, partial
from typing import Any
from weakref import ref

import mlx.core as mx

from kvcache.codecs.base import ArraySpec
from kvcache.codecs.feedback import LayerMetric
from kvcache.config import Backend
from kvcache.errors import CacheError
from kvcache.given import array, integer
from kvcache.layer_cache import LayerCache, make_tiers, turning
from kvcache.native.structs import TierMemory
from kvcache.reference import Mask
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
from kvcache.snapshot import Snapshot, Tokens, joined
from kvcache.tiers.cpu import CpuTiers
from kvcache.tiers.cpu_step import CpuStep
from kvcache.tiers.ledger import Ledger
from kvcache.tiers.plan import LayerPlan
from kvcache.turn import Rotation

# New tokens that meet the same blocks: the ledger before them, and what they meet.
Fetched = tuple[Ledger, Snapshot]
Stages = tuple[tuple[Ledger, int], ...]


class TwoTierKVCache(LayerCache):
    """Keys and values of one layer, bounded by its plan however long the chat.

        cache = TwoTierKVCache.from_config(CacheConfig(max_tokens=4096))
        out = cache.attend(q, k, v, scale=dim**-0.5)     k and v are appended, all held attended
        print(cache)                                     what is held, in one line

    For a whole model see `make_prompt_cache`, which knows its layers, budget and ropes.

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
        super().__init__(plan, rotation=rotation, metric=metric)
        self._fetched: Sequence[Fetched] = ()
        # Not held, so that what a model has attended to is given back.
        self._returned: list[ref[mx.array]] = []

    # -- mlx-lm's cache contract --

    def update_and_fetch(self, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        """Append; returns the tokens that `attend` would see, [B, Hkv, held + L, D].

        Pinned keys come turned the other way, for models that attend with one
        query only. As many tokens as a draft has come as if one by one: where a block leaves
        the hot ring amid them, what they see follows once more, as it is then.
        """
        k, v = array("k", k), array("v", v)
        new, done = self.checked(k, v), 0
        fetched, met = [], []
        for ledger, count in self._stages(self.ledger, new.length):
            some = new.cut(done, done + count)
            snapshot = self._tiers.snapshot(ledger, some)
            fetched.append((ledger, snapshot))
            met.append(self._met(ledger, snapshot))
            self._append(some)
            done += count
        self._fetched = fetched if self.keeps_snapshot else ()
        keys, values = joined(met)
        returned = keys.astype(k.dtype), values.astype(v.dtype)
        self._returned = [ref(x) for x in returned]
        return returned

    def _met(self, ledger: Ledger, snapshot: Snapshot) -> Tokens[mx.array]:
        """All tokens of a snapshot, decoded, as the next one meets them."""
        keys, values = snapshot.decoded(self.plan.hot_dtype.mx)
        pinned = min(self.plan.sizes.pinned, keys.shape[2])
        if ledger.evicted and self.rotation is not None:
            ahead = self.rotation(keys[:, :, :pinned], [ledger.evicted] * pinned)
            keys = mx.concatenate([ahead, keys[:, :, pinned:]], axis=2)
        return Tokens(keys, values)

    def has_returned(self, k: mx.array, v: mx.array) -> bool:
        """Whether these are what the last `update_and_fetch` returned, not made from it.

        Some models attend to more heads than they append, or to another layer's tokens.
        """
        return [id(was()) for was in self._returned] == [id(k), id(v)]

    def attend_fetched(self, q: mx.array, *, scale: float, mask: Mask) -> mx.array | None:
        """Attend to what the last `update_and_fetch` returned, without decoding it whole.

        Once for each fetch; None where there is none.
        """
        fetched, self._fetched = self._fetched, ()
        if len(fetched) > 1:
            return self._attend_stages(q, fetched, scale=scale, mask=mask)
        if not fetched:
            return None
        ((ledger, held),) = fetched
        position, queries, new = ledger.total, q.shape[2], held.new_count
        sight = self._sight(ledger, position, queries, new=new, mask="causal")
        # The array that `make_mask` gave says no more, and kernels take no array.
        if mask is None or (isinstance(mask, mx.array) and mask is not sight.whole):
            sight = self._sight(ledger, position, queries, new=new, mask=mask)
        return self._tiers.attend_snapshot(q, held, sight, scale / self.plan.temperature)

    def _attend_stages(
        self, q: mx.array, fetched: Sequence[Fetched], *, scale: float, mask: Mask
    ) -> mx.array | None:
        """The same where each run of queries has a snapshot; None for a mask of a caller's own."""
        runs = tuple((ledger, held.new_count) for ledger, held in fetched)
        if not isinstance(mask, mx.array) or mask is not _mask_of_stages(runs, None):
            return None
        found, done = [], 0
        for ledger, held in fetched:
            count = held.new_count
            sight = self._sight(ledger, ledger.total, count, new=count, mask="causal")
            some = q[:, :, done : done + count]
            scaled = scale / self.plan.temperature
            found.append(self._tiers.attend_snapshot(some, held, sight, scaled))
            done += count
        return mx.concatenate(found, axis=2)

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
        if len(runs := self._stages(ledger, length)) > 1:
            return _mask_of_stages(runs, window_size)
        sight = self._sight(ledger, ledger.total, length, new=length, mask="causal")
        if sight.is_whole and not return_array and window_size is None:
            return None if length == 1 else "causal"
        return sight.full(window_size)

    def to_quantized(self, group_size: int = 64, bits: int = 4) -> "TwoTierKVCache":
        """This cache: mlx-lm asks for another where it is given kv_bits, which is said once."""
        _say_of_kv_bits(bits)
        return self

    def is_trimmable(self) -> bool:
        """Whether tokens can be trimmed: the newest by the plan's slack; any while none moved."""
        return self.plan.sizes.slack > 0 or self.ledger.is_whole

    def trim(self, n: int) -> int:
        """Drop the newest `n` tokens, or all, as if they had not come; returns how many.

        Always as many as the plan's slack at least. Raises CacheError, and changes nothing, for
        more where they were encoded or let go: nothing else would be what it was.
        """
        dropped = min(max(integer("n", n, least=None), 0), self.ledger.total)
        self.ledger = _trimmed(self.ledger, dropped)
        return dropped

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
        if self._share is not None:
            raise CacheError("got a state for a cache of a shared budget: release its chat first")
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
        made = type(self)(self.plan, rotation=self._rope, metric=self.metric)
        self._tiers.copy_to(made._tiers, self.ledger)
        made.ledger, made._shape = self.ledger, self._shape
        return made

    def _take(self, saved: Saved) -> None:
        self.plan, self.ledger, self._tiers = saved.plan, saved.ledger, saved.tiers
        self._rope, self._shape = saved.rotation, saved.shape
        self.rotation = turning(self.plan, self._rope)
        self._fetched = ()

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
        self.ledger, self._shape, self._fetched = ledger, shape, ()

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
        self._make_room(length)
        sizes = self.plan.sizes
        if sizes.slack and length > sizes.hot:
            return []  # the kernel keeps none of those that pass the hot ring at once
        sight = self._sight(self.ledger, self.ledger.total, length, new=length, mask="causal")
        step = CpuStep(shape=shape, sight=sight, before=self.ledger, plan=self.plan)
        return [step] if step.is_taken else []

    def lend(self, steps: Sequence[CpuStep]) -> list[TierMemory]:
        """The memory, with room for the tokens of a step, to a kernel that writes them.

        Empty where this layer is unlike the step's, or holds what kernels do not read.
        """
        if steps:
            self._make_room(steps[0].sight.new)
        tiers = self._tiers
        if len(steps) != 1 or not isinstance(tiers, CpuTiers):
            return []
        (step,), shape = steps, self._shape or steps[0].shape
        suits = shape == step.shape and step.suits(self.ledger, self.plan, self.rotation)
        memory = tiers.struct(shape) if suits else None
        if memory is None:
            return []
        self._shape = shape
        tiers.reserve(self.ledger, step.after)
        return [memory]

    def commit(self, steps: Sequence[CpuStep]) -> None:
        """The tokens of a step were written to the lent memory."""
        (step,) = steps
        self.ledger = step.after

    # -- drafts --

    def _stages(self, ledger: Ledger, length: int) -> Stages:
        """New tokens in runs that meet the same blocks; more than a draft has are one run."""
        if length <= 1 or length > self.plan.sizes.slack + 1:
            return ((ledger, length),)
        return _stages(ledger, length)


_stages = lru_cache(maxsize=16)(Ledger.stages)
_trimmed = lru_cache(maxsize=16)(Ledger.trimmed)


@lru_cache(maxsize=16)
def _mask_of_stages(runs: Stages, window: int | None) -> mx.array:
    """[L, columns]: each run of queries sees its own columns of those of all runs."""
    masks = [ledger.sight(ledger.total, count, new=count).full(window) for ledger, count in runs]
    return mx.concatenate(
        [
            mx.concatenate(
                [
                    mask if row == column else mx.zeros((len(mask), other.shape[1]), mx.bool_)
                    for column, other in enumerate(masks)
                ],
                axis=1,
            )
            for row, mask in enumerate(masks)
        ]
    )


@cache
def _say_of_kv_bits(bits: int) -> None:
    warnings.warn(
        f"kv_bits={bits} is ignored: the cache encodes older tokens by its own codecs; give "
        "CacheConfig keys and values for others",
        stacklevel=3,
    )
