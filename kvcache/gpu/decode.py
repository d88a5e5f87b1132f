"""Attention of a few new tokens over all tiers: flash-decoding over spans of tokens.

Three launches: the cold blocks, the unencoded tokens, and the merge of the partial softmax that
each span gave. The kernels take queries into the keys' basis, turn them for pinned tokens, and
take the cold part of the output back from the values' basis.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import mlx.core as mx

from kvcache.codecs.base import Codec
from kvcache.gpu.device import threadgroups_here
from kvcache.gpu.families import family_of
from kvcache.gpu.hadamard import rotation_words
from kvcache.gpu.kernel import LEAST_SIZE, Launcher, in_device_memory, launch_on_device
from kvcache.gpu.step import ColdKernel, Step, Task, cold_kernel, step_of
from kvcache.sight import Sight
from kvcache.snapshot import Snapshot, Tokens

MOST_NEW = 8  # new tokens that the kernels are meant for: each 16 rows re-read the tiers
# Inputs that are not read, of the type of those that are.
_NO_TURNS = mx.array([0.0] * LEAST_SIZE)
_NO_WORDS = mx.array([0] * LEAST_SIZE, mx.uint32)


@dataclass(frozen=True, kw_only=True)
class _Coding:
    """How a layer's blocks are read: words as `rotation_words` of keys, and of values back."""

    cold: ColdKernel | None
    keys: mx.array | None = None
    values: mx.array | None = None


_NO_CODING = _Coding(cold=None)


@lru_cache(maxsize=512)
def _coding(codecs: tuple[Codec, Codec], kv_heads: int, dim: int) -> _Coding:
    """Raises CacheError for codecs that no kernel reads."""
    keys, values = codecs
    return _Coding(
        cold=cold_kernel(family_of(keys, dim), family_of(values, dim)),
        keys=rotation_words(keys.rotation, kv_heads, dim),
        values=rotation_words(values.rotation, kv_heads, dim, back=True),
    )


@dataclass(frozen=True, kw_only=True)
class TierDecoder:
    """Runs the kernels.

    launch: may be another than the device's, for tests.
    threadgroups: how many a launch should have where there is work for them.
    """

    launch: Launcher = launch_on_device
    threadgroups: int = field(default_factory=threadgroups_here)

    def attend(self, q: mx.array, held: Snapshot, sight: Sight, *, scale: float) -> mx.array:
        """Attend q [B, Hq, L, D] to all that is held and new; [B, Hq, L, D] in q's dtype.

        sight: one that suits kernels. Raises CacheError for codecs that no kernel reads.
        """
        kv_heads = held.kv_heads
        coding = _coding(held.codecs, kv_heads, q.shape[3]) if held.blocks else _NO_CODING
        none = _no_tokens(held, kv_heads, q)
        pinned, hot, new = held.pinned or none, held.hot or none, held.new or none
        turning = sight.rotation if held.pinned_count and any(sight.turns) else None
        pairs = len(turning.periods) if turning else 0
        step = step_of(
            Task(
                queries=q.shape,
                dtype=q.dtype,
                held_dtype=none.keys.dtype,
                kv_heads=kv_heads,
                scale=scale,
                position=sight.position,
                lowest=sight.lowest,
                pairs=pairs,
                apart=1 if turning and turning.traditional else pairs,
                evicted=held.evicted,
                pinned=held.pinned_count,
                pinned_room=pinned.length,
                hot=held.hot_count,
                hot_start=held.hot_start,
                hot_room=hot.length,
                new=held.new_count,
                segments=len(held.segments),
                slots=tuple(held.slots),
                first_slot=held.first_slot,
                blocks=held.blocks,
                block=held.block,
                cold=coding.cold,
                keys_rotated=coding.keys is not None,
                values_rotated=coding.values is not None,
                threadgroups=self.threadgroups,
            )
        )
        turns = in_device_memory(turning.table(sight.turns)) if turning else _NO_TURNS
        unencoded = self.launch(step.unencoded.of(q, turns, *pinned, *hot, *new))
        encoded = self._encoded(q, coding, step, held) or unencoded
        words = _NO_WORDS if coding.values is None else coding.values
        (out,) = self.launch(step.merge.of(*encoded, *unencoded, words))
        return out

    def _encoded(
        self, q: mx.array, coding: _Coding, step: Step, held: Snapshot
    ) -> Sequence[mx.array] | None:
        """Sums and stats of the cold blocks' spans; None without blocks."""
        if coding.cold is None:
            return None
        words = _NO_WORDS if coding.keys is None else coding.keys
        levels, parts = coding.cold.levels, coding.cold.segments.inputs(held)
        found = [
            self.launch(launch.of(q, words, levels, *some))
            for launch, some in zip(step.cold, parts, strict=True)
        ]
        if len(found) == 1:
            return found[0]
        return [mx.concatenate(list(side), axis=1) for side in zip(*found, strict=True)]


def _no_tokens(held: Snapshot, kv_heads: int, q: mx.array) -> Tokens[mx.array]:
    """Some tokens of the held ones' dtype, not read, where a tier holds nothing."""
    for tier in (held.new, held.hot, held.pinned):
        if tier is not None:
            return tier
    dtype = mx.bfloat16 if q.dtype == mx.bfloat16 else mx.float16
    nothing = mx.zeros((q.shape[0], kv_heads, 1, q.shape[3]), dtype)
    return Tokens(nothing, nothing)
