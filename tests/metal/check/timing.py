"""Seconds of one call among many that follow each other, so that no wait is counted.

Each takes what the one before gave: a GPU that runs independent launches side by side
cannot, and the time is the launch's own, latency included.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from kvcache.gpu.kernel import Call, Kernel, Launcher

_ROUNDS = 3
_MOST_CALLS = 512
Step = Callable[[mx.array], mx.array]
Calls = Callable[[int], mx.array | Sequence[mx.array]]

# One more launch after each call: copies a small input of the next one, and reads what the call
# gave. Nobody's output is that number.
_LINK = Kernel(
    stem="link",
    source="""
const int step = 32;
const T more = float(before[0]) == 1e30f ? T(1) : T(0);
for (int i = int(thread_index_in_threadgroup); i < COUNT; i += step) after[i] = small[i] + more;
""",
    headers="",
    inputs=("small", "before"),
    outputs=("after",),
)


@dataclass(frozen=True, kw_only=True)
class Timer:
    """seconds: about how long one round of calls should take."""

    seconds: float = 0.03

    def chained(self, step: Step, first: mx.array) -> float:
        """Of one call of `step`, in a chain that begins with `first`."""

        def calls(count: int) -> mx.array:
            now = first
            for _ in range(count):
                now = step(now)
            return now

        mx.eval(first)
        return self._best(calls)

    def queued(self, write: Callable[[], Sequence[mx.array]]) -> float:
        """Of one call of `write`, whose arrays are queued at once: each goes on from the last."""

        def calls(count: int) -> Sequence[mx.array]:
            written: Sequence[mx.array] = ()
            for _ in range(count):
                written = write()
                mx.async_eval(written)
            return written

        return self._best(calls)

    def kernel(self, launch: Launcher, call: Call) -> float:
        """Of one launch by itself, without that of the link between two."""
        at = min(range(len(call.inputs)), key=lambda index: call.inputs[index].nbytes)
        small = call.inputs[at]

        def both(now: mx.array) -> mx.array:
            inputs = [now if index == at else each for index, each in enumerate(call.inputs)]
            return link(launch(call._replace(inputs=inputs))[0])

        def link(before: mx.array) -> mx.array:
            return launch(linking(small, before))[0]

        return max(0.0, self.chained(both, small) - self.chained(link, small))

    def _best(self, calls: Calls) -> float:
        """Of one call, by the best of some rounds of as many as fill the time."""
        _waited(calls, 1)  # compiles
        count, taken = 2, _waited(calls, 2)
        while taken < self.seconds and count < _MOST_CALLS:
            count = int(min(_MOST_CALLS, max(2 * count, count * self.seconds / taken)))
            taken = _waited(calls, count)
        return min(taken, *(_waited(calls, count) for _ in range(_ROUNDS - 1))) / count


def _waited(calls: Calls, count: int) -> float:
    began = time.perf_counter()
    mx.eval(calls(count))
    return time.perf_counter() - began


def linking(small: mx.array, before: mx.array) -> Call:
    """What gives `small` once `before` is there."""
    return Call(
        kernel=_LINK,
        inputs=[small, before],
        constants={"T": small.dtype, "COUNT": small.size},
        grid=(32, 1, 1),
        threadgroup=(32, 1, 1),
        shapes=[tuple(small.shape)],
        dtypes=[small.dtype],
    )
