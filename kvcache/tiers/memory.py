"""The memory of one layer's tiers: what both kinds of it share.

`MlxTiers` keeps MLX arrays for plain MLX and the GPU, `CpuTiers` memory that the
CPU kernels read and write in place. Neither decides who moves when: they get the
ledger before and after. Unpinned tokens are numbered from 0: number = position -
ledger.start.
"""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Generic

import mlx.core as mx

from kvcache.codecs.base import Encoded
from kvcache.sight import Sight
from kvcache.snapshot import Array, Snapshot, Tokens, joined, side_by_side
from kvcache.tiers.ledger import Ledger, TierSizes
from kvcache.tiers.reference_attention import attend_tiers


class Tiers(ABC, Generic[Array]):
    """Pinned tokens, hot ring and cold ring of one layer. Tokens come in the hot dtype."""

    sizes: TierSizes

    # -- tokens --

    @abstractmethod
    def prepare(self, k: mx.array, v: mx.array) -> Tokens[Array]:
        """New tokens in the hot dtype. Raises CacheError for NaN or infinity, if checked."""

    def prepare_joined(self, k: mx.array, v: mx.array, _both: mx.array) -> Tokens[Array]:
        """The same of views of one array (see `Joined`), which need not be of use."""
        return self.prepare(k, v)

    def append(self, before: Ledger, after: Ledger, new: Tokens[Array]) -> None:
        """Write new tokens, and encode the blocks that leave the hot ring.

        What `after` can be trimmed to stays there, or is put there, too.
        """
        pinned = after.pinned - before.pinned
        if pinned:
            self.write_pinned(before.total, new.cut(0, pinned))
        fresh = new.cut(pinned, new.length) if pinned else new
        number = max(0, before.total - before.start)
        # Blocks that the same append lets go for good are not encoded.
        if before.end < after.end and (first := max(before.end, after.oldest)) < after.end:
            self.write_leaving(first, after.end, fresh, number)
        passed, length = max(0, after.kept_number - number), fresh.length
        if passed < length:
            self.write_hot(number + passed, fresh.cut(passed, length))

    def write_leaving(self, first: int, end: int, fresh: Tokens[Array], number: int) -> None:
        """Encode blocks [first, end) of hot tokens and of fresh ones, which begin at `number`."""
        self.write_cold(first, self._leaving(first, end, fresh, number))

    def fill(self, ledger: Ledger, k: mx.array, v: mx.array) -> None:
        """Take over tokens [B, Hkv, S, D]: the pinned ones and those from number 0 on.

        Raises CacheError as `prepare` does.
        """
        tokens, pinned = self.prepare(k, v), ledger.pinned
        if pinned:
            self.write_pinned(0, tokens.cut(0, pinned))
        if ledger.cold:
            first = ledger.first * self.sizes.block
            self.write_cold(ledger.first, tokens.cut(pinned + first, pinned + ledger.hot_number))
        if ledger.hot:
            self.write_hot(ledger.hot_number, tokens.cut(pinned + ledger.hot_number, tokens.length))

    def copy_to(self, other: "Tiers[Array]", ledger: Ledger) -> None:
        """All that is held, and what it can be trimmed to, to empty tiers of the same plan."""
        if not ledger.total:
            return
        number = ledger.kept_number
        held = self.snapshot(replace(ledger, first=ledger.oldest, lower=None))
        for position, tokens in held.unencoded():
            if position < ledger.pinned:
                other.write_pinned(position, other.prepare(*tokens))
        for position, keys, values in held.encoded():
            other.put_cold((position - ledger.start) // self.sizes.block, keys, values)
        if (count := ledger.total - ledger.start - number) > 0:
            other.write_hot(number, self.read_hot(number, count))

    @abstractmethod
    def share_with(self, other: "Tiers[Array]") -> None:
        """The same by reference: each of the two has memory of its own for what it writes."""

    @abstractmethod
    def places(self, *, token: int, block: int) -> dict[int, int]:
        """The bytes of what was written, by where it lies: what is shared lies at one place.

        token, block: bytes of an unencoded token and of a cold block.
        """

    def take_back(self, before: Ledger, after: Ledger) -> None:
        """Decode what `after` has hot of a block that was cold."""
        held = self.snapshot(before)
        for position, *block in held.encoded(most=1):
            if position == after.hot_start:
                keys, values = (
                    side_by_side(codec.decode(each)[..., : after.hot, :])
                    for codec, each in zip(held.cold.codecs, block, strict=True)
                )
                self.write_hot(after.hot_number, self.prepare(keys, values))

    def _leaving(self, first: int, end: int, fresh: Tokens[Array], number: int) -> Tokens[Array]:
        """The tokens of blocks [first, end), from the hot ring and from the new ones."""
        start, stop = first * self.sizes.block, end * self.sizes.block
        new = fresh.cut(max(start - number, 0), max(stop - number, 0))
        held = min(stop, number) - start
        return joined([self.read_hot(start, held), new]) if held > 0 else new

    # -- attention --

    @abstractmethod
    def snapshot(self, ledger: Ledger, new: Tokens[Array] | None = None) -> Snapshot:
        """What is held now, and new tokens, whatever is appended later."""

    def decoded(self, ledger: Ledger, dtype: mx.Dtype) -> Tokens[mx.array]:
        """All tokens of a ledger that holds some, oldest first: [B, Hkv, held, D] of `dtype`."""
        return self.snapshot(ledger).decoded(dtype)

    def attend(
        self, q: mx.array, ledger: Ledger, new: Tokens[Array] | None, sight: Sight, scale: float
    ) -> mx.array:
        """Attend q [B, Hq, L, D] to what is held and to new tokens; in q's dtype."""
        return self.attend_snapshot(q, self.snapshot(ledger, new), sight, scale)

    def attend_snapshot(self, q: mx.array, held: Snapshot, sight: Sight, scale: float) -> mx.array:
        """The same over a snapshot; here in plain MLX operations."""
        return attend_tiers(q, held, sight, scale)

    @abstractmethod
    def is_reference(self, dim: int) -> bool:
        """Whether plain MLX operations attend over tokens of D = `dim`, not kernels of ours."""

    # -- memory --

    @abstractmethod
    def read_hot(self, number: int, count: int) -> Tokens[Array]:
        """Hot tokens from a number."""

    @abstractmethod
    def write_pinned(self, position: int, tokens: Tokens[Array]) -> None:
        """Put pinned tokens."""

    @abstractmethod
    def write_hot(self, number: int, tokens: Tokens[Array]) -> None:
        """Put hot tokens from a number."""

    @abstractmethod
    def write_cold(self, number: int, tokens: Tokens[Array]) -> None:
        """Encode whole blocks from a block number."""

    @abstractmethod
    def put_cold(self, number: int, keys: Encoded, values: Encoded) -> None:
        """Put encoded blocks [N, B, Hkv, ...] from a block number."""

    @abstractmethod
    def pending(self) -> list[mx.array]:
        """Arrays that may still have to be evaluated, in any order.

        What reads a ring in the same go makes its write a copy, whichever comes first.
        """

    def after_writes(self, out: mx.array) -> mx.array:
        """`out`, which now is not there before what was written; as it is where writes wait not.

        So the next layer begins once the new tokens of this one are in their tiers: else
        those of all layers would be held at a time.
        """
        return out

    @property
    @abstractmethod
    def allocated_tokens(self) -> int:
        """Unencoded tokens that there is memory for."""

    @property
    @abstractmethod
    def allocated_blocks(self) -> int:
        """Cold blocks that there is memory for."""
