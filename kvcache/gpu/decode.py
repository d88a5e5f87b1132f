"""Attention of a few new tokens over all tiers: flash-decoding over spans of tokens.

Three launches: the cold blocks, the unencoded tokens, and the merge of the partial softmax that
each span gave. The kernels take queries into the keys' basis, turn them for pinned tokens, and
take the cold part of the output back from the values' basis.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import mlx.core as mx

from kvcache.gpu.device import threadgroups_here
from kvcache.gpu.families import family_of
from kvcache.gpu.hadamard import rotation_words
from kvcache.gpu.kernel import LEAST_SIZE, Launcher, launch_on_device
from kvcache.gpu.step import ColdTask, Step, Task, cold_kernel, step_of
from kvcache.sight import Sight
from kvcache.snapshot import ColdBlocks, Snapshot, Tokens

MOST_NEW = 8  # new tokens that the kernels are meant for: each 16 rows re-read the tiers
_NO_WORDS = mx.array([0] * LEAST_SIZE, mx.uint32)  # of the type of those that are read


@dataclass(frozen=True, kw_only=True, eq=False)
class _Reading:
    """How a layer's blocks are read, until another is written.

    inputs: of each cold launch, but for the queries. back: `rotation_words` of values.
    """

    task: ColdTask
    inputs: Sequence[Sequence[mx.array]]
    back: mx.array


# Not longer than the blocks: while their arrays are held here, a write must copy them.
_READINGS: WeakKeyDictionary[ColdBlocks, _Reading] = WeakKeyDictionary()


def _reading_of(cold: ColdBlocks) -> _Reading:
    """Raises CacheError for codecs that no kernel reads."""
    found = _READINGS.get(cold)
    if found is None:
        found = _READINGS[cold] = _made_reading(cold)
    return found


def _made_reading(cold: ColdBlocks) -> _Reading:
    (keys, values), heads, dim = cold.codecs, cold.kv_heads, cold.dim
    kernel = cold_kernel(family_of(keys, dim), family_of(values, dim))
    words = rotation_words(keys.rotation, heads, dim)
    back = rotation_words(values.rotation, heads, dim, back=True)
    first = _NO_WORDS if words is None else words, kernel.levels
    return _Reading(
        task=ColdTask(
            kernel=kernel,
            segments=len(cold.segments),
            slots=tuple(cold.slots),
            keys_rotated=words is not None,
            values_rotated=back is not None,
        ),
        inputs=[(*first, *parts) for parts in kernel.segments.inputs(cold)],
        back=_NO_WORDS if back is None else back,
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
        bounds, cold, pinned, hot, new = held
        # Where a tier holds nothing, some tokens of the others' dtype, which are not read.
        some = new or hot or pinned or _no_tokens(q, cold.kv_heads)
        pinned, hot, new = pinned or some, hot or some, new or some
        reading = _reading_of(cold) if bounds.blocks else None
        step = step_of(
            Task(
                queries=q.shape,
                dtype=q.dtype,
                pinned=pinned.keys.shape,
                hot=hot.keys.shape,
                held_dtype=some.keys.dtype,
                scale=scale,
                sight=sight,
                bounds=bounds,
                cold=None if reading is None else reading.task,
                threadgroups=self.threadgroups,
            )
        )
        unencoded = self.launch(step.unencoded.of(q, step.turns, *pinned, *hot, *new))
        if reading is None:
            (out,) = self.launch(step.merge.of(*unencoded, *unencoded, _NO_WORDS))
        else:
            encoded = self._encoded(q, reading, step)
            (out,) = self.launch(step.merge.of(*encoded, *unencoded, reading.back))
        return out

    def _encoded(self, q: mx.array, reading: _Reading, step: Step) -> Sequence[mx.array]:
        """Sums and stats of the cold blocks' spans."""
        found = [
            self.launch(call.of(q, *inputs))
            for call, inputs in zip(step.cold, reading.inputs, strict=True)
        ]
        if len(found) == 1:
            return found[0]
        return [mx.concatenate(list(side), axis=1) for side in zip(*found, strict=True)]


def _no_tokens(q: mx.array, kv_heads: int) -> Tokens[mx.array]:
    dtype = mx.bfloat16 if q.dtype == mx.bfloat16 else mx.float16
    nothing = mx.zeros((q.shape[0], kv_heads, 1, q.shape[3]), dtype)
    return Tokens(nothing, nothing)
