"""Unencoded keys and values in a ring, as MLX arrays: what pinned and hot tokens are kept in.

Token number u lies at u mod capacity. Knows no positions, tiers or attention.
"""

import mlx.core as mx

from kvcache.snapshot import Tokens, joined, runs

_FIRST_CAPACITY = 64


class TokenRing:
    """Up to `capacity` tokens of one layer, in memory that grows by doubling until it is full.

    A wrapping number needs the whole capacity, so growing never moves a token.
    tokens: all of the memory, [B, Hkv, allocated, D]; None before the first write.
    """

    def __init__(self, capacity: int, *, dtype: mx.Dtype) -> None:
        self.capacity = capacity
        self.tokens: Tokens[mx.array] | None = None
        self._dtype = dtype

    def write(self, start: int, new: Tokens[mx.array]) -> None:
        """Put tokens [B, Hkv, L, D], L at most the capacity, at numbers start .. start + L."""
        for run in runs(start, new.length, [self.capacity]):
            old = self._reserved(new.keys, start + new.length)
            some = new.cut(run.done, run.done + run.stop - run.at)
            # New arrays: a snapshot taken before keeps what it saw.
            keys, values = (
                mx.slice_update(into, tokens.astype(self._dtype), mx.array(run.at), axes=(2,))
                for into, tokens in zip(old, some, strict=True)
            )
            self.tokens = Tokens(keys, values)

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

    def _reserved(self, like: mx.array, end: int) -> Tokens[mx.array]:
        """The memory, with room for the tokens up to number `end`."""
        batch, heads, _, dim = like.shape
        room = max(self.allocated, min(_FIRST_CAPACITY, self.capacity))
        while room < min(end, self.capacity):
            room = min(2 * room, self.capacity)
        if self.tokens is None:
            shape = batch, heads, room, dim
            return Tokens(mx.zeros(shape, self._dtype), mx.zeros(shape, self._dtype))
        if room == self.allocated:
            return self.tokens
        more = [(0, 0), (0, 0), (0, room - self.allocated), (0, 0)]
        keys, values = self.tokens
        return Tokens(mx.pad(keys, more), mx.pad(values, more))
