"""Where the ranks of one model agree: which token was drawn, and whether to go on.

Every rank runs the same generation; what could differ between them is the first rank's word.
Each call here waits for all ranks, which must make the same calls in the same order.
"""

import threading
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from app.sampling import Sampler, Sampling

Group = mx.distributed.Group
_LARGEST = 2**31 - 1


def first_word(values: mx.array, group: Group) -> mx.array:
    """Whole numbers as the first rank has them, of as many on every rank; unevaluated."""
    # The others' numbers are computed too: on all ranks the same comes before.
    own = values.astype(mx.int32) * int(group.rank() == 0)
    return mx.distributed.all_sum(own, group=group).astype(values.dtype)


def least(values: Sequence[int], group: Group) -> list[int]:
    """Of each whole number the least that any rank has."""
    own = mx.array([min(value, _LARGEST) for value in values], mx.int32)
    found: list[int] = np.asarray(mx.distributed.all_min(own, group=group)).tolist()
    return found


class FirstSampler(Sampler):
    """A sampler whose tokens are the first rank's."""

    def __init__(self, sampling: Sampling, prompts: Sequence[Sequence[int]], group: Group) -> None:
        super().__init__(sampling, prompts)
        self._group = group

    def _pick(self, logits: mx.array) -> mx.array:
        return first_word(super()._pick(logits), self._group)


class FirstFlag(threading.Event):
    """Set for all ranks once it is for the first. Each look at it is a meeting."""

    def __init__(self, own: threading.Event, group: Group) -> None:
        super().__init__()
        self._own, self._group = own, group

    def is_set(self) -> bool:
        return bool(first_word(mx.array([self._own.is_set()], mx.int32), self._group).item())
