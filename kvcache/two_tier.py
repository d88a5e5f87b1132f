"""The two-tier cache of one layer, as mlx-lm's models, files and networks' kernels take it.

What it holds is `holding`'s; what queries meet of it, `layer_cache`'s.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from typing import Any, ClassVar

import mlx.core as mx

from kvcache.codecs.base import ArraySpec
from kvcache.codecs.feedback import LayerMetric
from kvcache.config import Backend
from kvcache.errors import CacheError
from kvcache.fetching import FetchingCache
from kvcache.given import integer
from kvcache.holding import make_tiers, turning
from kvcache.native.structs import TierMemory
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
from kvcache.tiers.cpu import CpuTiers
from kvcache.tiers.cpu_step import CpuStep
from kvcache.tiers.ledger import Ledger


class TwoTierKVCache(FetchingCache):
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
    merge: `RowsKVCache.of`, which mlx-lm's generators ask for: they batch only what has it. Put
    here by `rows`, whose batches are made of this class.
    """

    merge: ClassVar[Callable[[Sequence["TwoTierKVCache"]], Any]]

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
        self._settle()
        dropped = min(max(integer("n", n, least=None), 0), self.ledger.total)
        self.ledger = _trimmed(self.ledger, dropped)
        return dropped

    @property
    def state(self) -> State:
        """Everything the cache is, as `saved` lays it out; mlx-lm asks for it to compute it."""
        tied, self._tied = self._tied, []
        mx.eval(tied)
        return dump(
            Saved(
                plan=self.full_plan,
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
        made = type(self)(self.full_plan, rotation=self._rope, metric=self.metric)
        if self._share is None:
            self._tiers.share_with(made._tiers)
        else:
            self._tiers.copy_to(made._tiers, self.ledger)
        made.ledger, made._shape = replace(self.ledger, sizes=made.plan.sizes), self._shape
        made._looks = self._looks
        return made

    def _take(self, saved: Saved) -> None:
        self.plan, self.ledger, self._memory = saved.plan, saved.ledger, saved.tiers
        self._waiting, self._window = None, None
        self._rope, self._shape = saved.rotation, saved.shape
        self.rotation = turning(self.plan, self._rope)

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
        self.ledger, self._shape = ledger, shape
        self._window = None

    def put_parts(self, number: int, parts: Sequence[mx.array]) -> None:
        """Put cold blocks from a block number, all of which `hold` has told of."""
        assert self._shape is not None, "blocks before `hold`"
        put_parts(self._tiers, self.plan, number, parts, self._shape[2])

    def pending(self) -> list[mx.array]:
        """Arrays to evaluate before the next step; cheaper than `state`, which copies."""
        tied, self._tied = self._tied, []
        return [*self._tiers.pending(), *tied]

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
        memory = self.lent(steps[0]) if len(steps) == 1 else None
        return [] if memory is None else [memory]

    def lent(self, step: CpuStep) -> TierMemory | None:
        """The same for one step; asked for each token, layer and row."""
        if self._share is not None:
            self._make_room(step.sight.new)
        tiers, shape = self._tiers, step.shape
        if (self._shape or shape) != shape or not isinstance(tiers, CpuTiers):
            return None
        if not step.suits(self.ledger, self.plan, self.rotation):
            return None
        memory = tiers.struct(shape)
        if memory is not None:
            self._shape = shape
            tiers.reserve(step.writes)
        return memory

    def commit(self, steps: Sequence[CpuStep]) -> None:
        """The tokens of a step were written to the lent memory."""
        (step,) = steps
        self.ledger, self._window = step.after, None


_trimmed = lru_cache(maxsize=16)(Ledger.trimmed)


@cache
def _say_of_kv_bits(bits: int) -> None:
    warnings.warn(
        f"kv_bits={bits} is ignored: the cache encodes older tokens by its own codecs; give "
        "CacheConfig keys and values for others",
        stacklevel=3,
    )
