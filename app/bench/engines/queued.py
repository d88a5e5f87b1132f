"""Tokens one after another as a GPU should compute them: one wait for each."""

from collections.abc import Callable, Sequence

import mlx.core as mx

Arrays = Sequence[object]  # mx.eval takes any tree of arrays


class QueuedTokens:
    """Each token is queued before the one before it is waited for, as programs do that answer.

    step: one more token of each row [B], from the one before: the next token [B] and what
    was written, both lazy. Its result is queued first, writes after it: whoever reads old
    tokens and is written in one evaluation is copied whole. first: the token that `advance`
    starts from.
    """

    def __init__(self, step: Callable[[mx.array], tuple[mx.array, Arrays]], first: mx.array):
        self._step = step
        self._last = self._queue(first)

    def advance(self) -> None:
        """Wait for one token; the next is on its way then."""
        done, self._last = self._last, self._queue(self._last)
        mx.eval(done)

    def _queue(self, token: mx.array) -> mx.array:
        found, written = self._step(token)
        mx.async_eval(found)
        mx.async_eval(written)
        return found
