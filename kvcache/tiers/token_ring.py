"""Unencoded keys and values in a ring, as MLX arrays: what pinned and hot tokens are kept in.

Token number u lies at u mod capacity. Knows no positions, tiers or attention.
"""

from copy import copy

import mlx.core as mx

from kvcache.snapshot import Joined, Tokens, joined, runs

_STEP = 64


class TokenRing:
    """Up to `capacity` tokens of one layer, in memory that grows by a few until it is full.

    A wrapping number needs the whole capacity, so growing never moves a token.
    tokens: all of the memory, [B, Hkv, allocated, D], as views of one array, so that one
    launch writes keys and values where they come so; None before the first write.
    """

    def __init__(self, capacity: int, *, dtype: mx.Dtype) -> None:
        self.capacity = capacity
        self.tokens: Joined | None = None
        self._dtype = dtype

    def write(self, start: int, new: Tokens[mx.array]) -> None:
        """Put tokens [B, Hkv, L, D], L at most the capacity, at numbers start .. start + L."""
        count = new.length
        both = self._reserved(new.keys, start + count)
        for run in runs(start, count, [self.capacity]):
            # Starts are numbers, not arrays, which would be a launch of their own.
            where = slice(run.at, run.stop)
            some = new.cut(run.done, run.done + run.stop - run.at)
            if isinstance(some, Joined):
                both[:, :, where] = some.both
            else:
                rows = len(both) // 2
                both[:rows, :, where] = some.keys
                both[rows:, :, where] = some.values
        self.tokens = Joined.halves(both)

    def read(self, start: int, count: int) -> Tokens[mx.array]:
        """`count` tokens from number `start` on."""
        assert self.tokens is not None, "read before the first write"
        return joined(
            [self.tokens.cut(run.at, run.stop) for run in runs(start, count, [self.capacity])]
        )

    @property
    def allocated(self) -> int:
        """Tokens that the memory has room for now."""
        return self.tokens.length if self.tokens else 0

    def _reserved(self, like: mx.array, end: int) -> mx.array:
        """The memory [2 * B, Hkv, room, D], with room for the tokens up to number `end`.

        An array of its own, which shares the memory: a snapshot keeps what it saw.
        """
        wanted = min(end, self.capacity)
        if self.tokens is not None and wanted <= self.tokens.length:
            return copy(self.tokens.both)
        room = min(-(-wanted // _STEP) * _STEP, self.capacity)
        if self.tokens is None:
            batch, heads, _, dim = like.shape
            return mx.zeros((2 * batch, heads, room, dim), self._dtype)
        more = [(0, 0), (0, 0), (0, room - self.allocated), (0, 0)]
        return mx.pad(self.tokens.both, more)
