"""The memory of one layer's tiers: writes tokens where the ledger says, and reads them back.

Unpinned tokens are numbered from 0: number = position - pinned. This module
decides nothing about who moves when; it gets the ledger before and after.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from kvcache.cold_ring import ColdRing, ColdView
from kvcache.ledger import Ledger
from kvcache.plan import LayerPlan
from kvcache.tier_view import Piece
from kvcache.token_ring import TokenRing

Tokens = tuple[mx.array, mx.array]


@dataclass(frozen=True, kw_only=True)
class TierView:
    """What the tiers hold at a moment: unencoded pieces, and cold blocks if there are any."""

    pieces: list[Piece]
    cold: ColdView | None


class Tiers:
    """Pinned tokens, hot ring and cold ring."""

    def __init__(self, plan: LayerPlan) -> None:
        self.sizes = plan.sizes
        self.dtype = plan.hot_dtype.mx
        self.pinned = TokenRing(plan.sizes.pinned, dtype=plan.hot_dtype, backend=plan.backend)
        self.hot = TokenRing(plan.sizes.ring, dtype=plan.hot_dtype, backend=plan.backend)
        self.cold = ColdRing(
            plan.sizes.slots,
            block=plan.sizes.block,
            keys=plan.key_codec,
            values=plan.value_codec,
        )

    def append(self, before: Ledger, after: Ledger, tokens: Tokens) -> None:
        """Write new tokens [B, Hkv, L, D] and encode the blocks that leave the hot ring."""
        sinks = after.sink - before.sink
        self.pinned.write(before.total, *_cut(tokens, 0, sinks))
        fresh = _cut(tokens, sinks, tokens[0].shape[2])
        number = max(0, before.total - self.sizes.pinned)
        # Blocks that the same append lets go are not encoded.
        first = max(before.end, after.first)
        if first < after.end:
            self.cold.write(first, *self._leaving(first, after.end, fresh, number))
        stays = max(number, after.end * self.sizes.block)
        self.hot.write(stays, *_cut(fresh, stays - number, fresh[0].shape[2]))

    def view(self, ledger: Ledger) -> "TierView":
        """The held tokens as they are now, whatever is appended later."""
        pieces = []
        if ledger.sink:
            keys, values = self.pinned.read(0, ledger.sink)
            pieces.append(Piece(keys=keys, values=values, position=0, pinned=True))
        if ledger.hot:
            keys, values = self.hot.read(self._hot_number(ledger), ledger.hot)
            pieces.append(Piece(keys=keys, values=values, position=ledger.hot_start))
        cold = self.cold.view(ledger.first, ledger.end) if ledger.cold else None
        return TierView(pieces=pieces, cold=cold)

    def decoded(self, ledger: Ledger) -> Tokens:
        """All held keys and values [B, Hkv, held, D] in the hot dtype, oldest first."""
        view = self.view(ledger)
        parts = [(piece.keys, piece.values) for piece in view.pieces]
        if view.cold is not None:
            keys, values = view.cold.decoded()
            cold = keys.astype(self.dtype), values.astype(self.dtype)
            parts.insert(1 if ledger.sink else 0, cold)
        return joined(parts)

    def fill(self, ledger: Ledger, tokens: Tokens, evicted: int) -> None:
        """Take over held tokens [B, Hkv, S, D] of a cache that had let `evicted` go."""
        self.pinned.write(0, *_cut(tokens, 0, ledger.sink))
        block, end = self.sizes.block, tokens[0].shape[2]
        # The token of number n is column n + offset.
        offset = ledger.sink - evicted
        if ledger.cold:
            columns = ledger.first * block + offset, ledger.end * block + offset
            self.cold.write(ledger.first, *_cut(tokens, *columns))
        if ledger.hot:
            number = self._hot_number(ledger)
            self.hot.write(number, *_cut(tokens, number + offset, end))

    def pending(self) -> list[mx.array]:
        """Arrays that may still have to be evaluated."""
        return [*self.pinned.pending(), *self.hot.pending(), *self.cold.pending()]

    def _hot_number(self, ledger: Ledger) -> int:
        return ledger.end * self.sizes.block

    def _leaving(self, first: int, end: int, fresh: Tokens, number: int) -> Tokens:
        """The tokens of blocks [first, end), from the hot ring and from the new ones."""
        start, stop = first * self.sizes.block, end * self.sizes.block
        new = _cut(fresh, max(start - number, 0), max(stop - number, 0))
        held = min(stop, number) - start
        if held <= 0:
            return new
        return joined([self.hot.read(start, held), new])


def joined(parts: Sequence[Tokens]) -> Tokens:
    """Keys and values of several runs of tokens as one."""
    keys = mx.concatenate([keys for keys, _ in parts], axis=2)
    return keys, mx.concatenate([values for _, values in parts], axis=2)


def _cut(tokens: Tokens, start: int, stop: int) -> Tokens:
    return tokens[0][:, :, start:stop], tokens[1][:, :, start:stop]
