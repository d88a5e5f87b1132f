"""What mlx-lm's attention is given to look at: all tokens of a layer, decoded, in one piece.

Kept from token to token while nothing moves between tiers, so that a token costs what
appending it to mlx-lm's own cache does. Knows no tiers.
"""

from dataclasses import dataclass

import mlx.core as mx

from kvcache.snapshot import Tokens, joined
from kvcache.tiers.ledger import Ledger

# Tokens that there is room for at a time, as in mlx-lm's cache.
_STEP = 256


@dataclass
class DecodedWindow:
    """Keys and values [B, Hkv, room, D] of the tokens that a ledger tells of, `length` of them.

    They have the dtypes of those that come.
    """

    ledger: Ledger
    keys: mx.array
    values: mx.array
    length: int

    @classmethod
    def of(cls, ledger: Ledger, held: Tokens[mx.array]) -> "DecodedWindow":
        """Of tokens [B, Hkv, S, D], in memory of its own."""
        made = cls(ledger, *held, held.length)
        made._make_room(held.length + 1)
        return made

    def goes_on(self, ledger: Ledger, k: mx.array, v: mx.array) -> bool:
        """Go back to the tokens of a ledger, behind which others come; whether these have it all.

        Nothing was written since: its ledger is the same, or as much of it was trimmed.
        """
        dropped = self.ledger.total - ledger.total
        alike = (self.keys.dtype, self.values.dtype) == (k.dtype, v.dtype)
        if not alike or dropped < 0 or moved(self.ledger, ledger):
            return False
        self.ledger, self.length = ledger, self.length - dropped
        return True

    def append(self, k: mx.array, v: mx.array, after: Ledger) -> Tokens[mx.array]:
        """Put new tokens [B, Hkv, L, D]; returns all as views, not computed."""
        stop = self.length + k.shape[2]
        self._make_room(stop)
        self.keys[:, :, self.length : stop] = k
        self.values[:, :, self.length : stop] = v
        self.ledger, self.length = after, stop
        return Tokens(self.keys, self.values).cut(0, stop)

    @property
    def nbytes(self) -> int:
        """Bytes of the memory."""
        return self.keys.nbytes + self.values.nbytes

    def _make_room(self, tokens: int) -> None:
        room = self.keys.shape[2]
        if tokens > room:
            batch, heads, _, dim = self.keys.shape
            more = batch, heads, -(-(tokens - room) // _STEP) * _STEP, dim
            self.keys, self.values = joined(
                [
                    Tokens(self.keys, self.values),
                    Tokens(*(mx.zeros(more, x.dtype) for x in (self.keys, self.values))),
                ]
            )


def moved(before: Ledger, after: Ledger) -> bool:
    """Whether blocks lie in another tier than before."""
    return (before.first, before.end, before.origin) != (after.first, after.end, after.origin)
