"""The memory of one layer's tiers: what both kinds of it share.

`DeviceTiers` keeps MLX arrays for plain MLX and the GPU, `HostTiers` plain memory
for the CPU kernels. Neither decides who moves when: they get the ledger before
and after. Unpinned tokens are numbered from 0: number = position - ledger.start.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

import mlx.core as mx

from kvcache.codecs.base import Encoded
from kvcache.tiers.cold_ring import ColdView
from kvcache.tiers.ledger import Ledger, TierSizes
from kvcache.tiers.sight import Piece, Sight
from kvcache.turn import Rotation

Tokens = tuple[mx.array, mx.array]


class TokenRun(Protocol):
    """Keys and values [B, Hkv, L, D] of consecutive tokens in the hot dtype."""

    @property
    def length(self) -> int:
        """L."""
        ...

    def cut(self, start: int, stop: int) -> Self:
        """The tokens [start, stop)."""
        ...


Run = TypeVar("Run", bound=TokenRun)


# (q, sight, rotation, scale) -> output in q's dtype
Attend = Callable[[mx.array, Sight, Rotation | None, float], mx.array]


@dataclass(frozen=True, kw_only=True)
class TierView:
    """What the tiers hold at a moment: unencoded pieces, and cold blocks if there are any."""

    pieces: list[Piece]
    cold: ColdView | None

    def decoded(self, dtype: mx.Dtype) -> Tokens:
        """All keys and values [B, Hkv, held, D], oldest first."""
        parts = [(piece.keys, piece.values) for piece in self.pieces]
        if self.cold is not None:
            keys, values = self.cold.decoded()
            sinks = sum(piece.pinned for piece in self.pieces)
            parts.insert(sinks, (keys.astype(dtype), values.astype(dtype)))
        keys = mx.concatenate([part[0] for part in parts], axis=2)
        return keys, mx.concatenate([part[1] for part in parts], axis=2)


class Tiers(ABC, Generic[Run]):
    """Pinned tokens, hot ring and cold ring of one layer."""

    sizes: TierSizes

    def append(self, before: Ledger, after: Ledger, new: Run) -> None:
        """Write new tokens, and encode the blocks that leave the hot ring."""
        sinks = after.sink - before.sink
        if sinks:
            self.write_pinned(before.total, new.cut(0, sinks))
        fresh = new.cut(sinks, new.length) if sinks else new
        number = max(0, before.total - before.start)
        # Blocks that the same append lets go are not encoded.
        first = max(before.end, after.first)
        if first < after.end:
            self.write_cold(first, self._leaving(first, after.end, fresh, number))
        stays = max(number, after.hot_number)
        if stays - number < fresh.length:
            self.write_hot(stays, fresh.cut(stays - number, fresh.length))

    def fill(self, ledger: Ledger, tokens: Tokens) -> None:
        """Take over tokens [B, Hkv, S, D]: the pinned ones and those from number 0 on.

        Raises CacheError as `prepare` does.
        """
        run, sink = self.prepare(*tokens), ledger.sink
        if sink:
            self.write_pinned(0, run.cut(0, sink))
        if ledger.cold:
            first = ledger.first * self.sizes.block
            self.write_cold(ledger.first, run.cut(sink + first, sink + ledger.hot_number))
        if ledger.hot:
            self.write_hot(ledger.hot_number, run.cut(sink + ledger.hot_number, run.length))

    def _leaving(self, first: int, end: int, fresh: Run, number: int) -> Run:
        """The tokens of blocks [first, end), from the hot ring and from the new ones."""
        start, stop = first * self.sizes.block, end * self.sizes.block
        new = fresh.cut(max(start - number, 0), max(stop - number, 0))
        held = min(stop, number) - start
        return self.joined([self.read_hot(start, held), new]) if held > 0 else new

    # -- new tokens --

    @abstractmethod
    def prepare(self, k: mx.array, v: mx.array) -> Run:
        """New tokens in the hot dtype. Raises CacheError for NaN or infinity, if checked."""

    @abstractmethod
    def run(self, tokens: Tokens) -> Run:
        """Tokens in the hot dtype, unchecked."""

    @abstractmethod
    def arrays(self, run: Run) -> Tokens:
        """A run as MLX arrays."""

    @abstractmethod
    def joined(self, runs: Sequence[Run]) -> Run:
        """Several runs as one."""

    # -- attention --

    def attend(
        self, q: mx.array, new: Run | None, sight: Sight, rotation: Rotation | None, scale: float
    ) -> mx.array:
        """Attend q [B, Hq, L, D] to what is held and to new tokens; in q's dtype."""
        return self.attending(sight.ledger, new)(q, sight, rotation, scale)

    @abstractmethod
    def attending(self, ledger: Ledger, new: Run | None) -> Attend:
        """Attention over what is held now and new tokens, whatever is appended later."""

    @abstractmethod
    def is_plain(self, dim: int) -> bool:
        """Whether plain MLX operations attend over tokens of D = `dim`, not kernels of ours."""

    # -- memory --

    @abstractmethod
    def view(self, ledger: Ledger) -> TierView:
        """The held tokens as they are now, whatever is appended later."""

    @abstractmethod
    def read_hot(self, number: int, count: int) -> Run:
        """Hot tokens from a number."""

    @abstractmethod
    def write_pinned(self, position: int, run: Run) -> None:
        """Put pinned tokens."""

    @abstractmethod
    def write_hot(self, number: int, run: Run) -> None:
        """Put hot tokens from a number."""

    @abstractmethod
    def write_cold(self, number: int, run: Run) -> None:
        """Encode whole blocks from a block number."""

    @abstractmethod
    def put_cold(self, number: int, keys: Encoded, values: Encoded) -> None:
        """Put encoded blocks [N, B, Hkv, ...] from a block number."""

    @abstractmethod
    def pending(self) -> list[mx.array]:
        """Arrays that may still have to be evaluated."""

    @property
    @abstractmethod
    def allocated_tokens(self) -> int:
        """Unencoded tokens that there is memory for."""

    @property
    @abstractmethod
    def allocated_blocks(self) -> int:
        """Cold blocks that there is memory for."""
