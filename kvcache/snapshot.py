"""What the tiers of one layer hold at a moment, in MLX arrays: whole buffers, lengths and starts.

Who reads a snapshot slices it; taking one slices and copies nothing that is in MLX arrays
already. Writes make new arrays, so what was taken before one stays as it was. Knows how
tokens lie, not when they move or what attends to them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import mlx.core as mx
import numpy as np

from kvcache.codecs.base import Codec, Encoded, Parts


class _Sliced(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, where: Any, /) -> Any: ...


# Of MLX or of numpy.
Array = TypeVar("Array", bound=_Sliced)


class Tokens(NamedTuple, Generic[Array]):
    """Unencoded keys and values [B, Hkv, L, D]."""

    keys: Array
    values: Array

    @property
    def length(self) -> int:
        """L."""
        return self.keys.shape[2]

    def cut(self, start: int, stop: int) -> "Tokens[Array]":
        """The tokens [start, stop)."""
        if start == 0 and stop >= self.length:
            return self
        return Tokens(self.keys[:, :, start:stop], self.values[:, :, start:stop])


class Joined(Tokens[mx.array]):
    """Tokens whose keys and values are the halves of one array, which one write then takes.

    both: [2 * B, Hkv, L, D], the keys of all batch rows before the values.
    """

    both: mx.array

    @classmethod
    def halves(cls, both: mx.array) -> "Joined":
        """The tokens of `both`, as views of it."""
        keys, values = mx.split(both, 2)
        return cls.of(keys, values, both)

    @classmethod
    def of(cls, keys: mx.array, values: mx.array, both: mx.array) -> "Joined":
        """The same where the views are there already."""
        made = cls(keys, values)
        made.both = both
        return made


# The position of the first token, and all of them.
Placed = tuple[int, Tokens[mx.array]]


def joined(parts: Sequence[Tokens[Array]]) -> Tokens[Array]:
    """Several runs of tokens as one."""
    if len(parts) == 1:
        return parts[0]
    concatenate: Any = mx.concatenate if isinstance(parts[0].keys, mx.array) else np.concatenate
    keys, values = (concatenate(side, axis=2) for side in zip(*parts, strict=True))
    return Tokens(keys, values)


class Run(NamedTuple):
    """Places of a ring that lie side by side, [at, stop) of a segment; `done` came before them."""

    segment: int
    at: int
    stop: int
    done: int


def runs(first: int, count: int, segments: Sequence[int]) -> Iterator[Run]:
    """The `count` places from number `first` on of a ring that is as large as its segments."""
    done, size = 0, sum(segments)
    while done < count:
        at, segment = (first + done) % size, 0
        while at >= segments[segment]:
            at, segment = at - segments[segment], segment + 1
        stop = min(at + count - done, segments[segment])
        yield Run(segment, at, stop, done)
        done += stop - at


@dataclass(frozen=True, kw_only=True, eq=False)
class Bounds:
    """What of a layer's buffers counts: one object for all layers that hold alike.

    evicted: tokens let go after the pinned ones.
    pinned: tokens of the pinned buffer, its first.
    first_slot, blocks: where encoded blocks begin, and how many follow, wrapping around.
    block: tokens of one.
    hot, hot_start: tokens of the hot ring, and where they begin, wrapping around.
    """

    evicted: int = 0
    pinned: int = 0
    first_slot: int = 0
    blocks: int = 0
    block: int = 1
    hot: int = 0
    hot_start: int = 0

    @property
    def cold_position(self) -> int:
        """Of the first token of the oldest block."""
        return self.pinned + self.evicted

    @property
    def hot_position(self) -> int:
        """Of the oldest hot token."""
        return self.cold_position + self.blocks * self.block

    @property
    def new_position(self) -> int:
        """Of the first new token."""
        return self.hot_position + self.hot


@dataclass(frozen=True, kw_only=True, eq=False)
class ColdBlocks:
    """Encoded blocks in a ring of slots: another object once a block is written.

    codecs: of keys and of values.
    segments: a few pairs of encoded keys and values, each part [slots, B, Hkv, *trailing].
    slots: of each segment; the last ones may not be there yet.
    dim: D, once there are blocks.
    """

    codecs: tuple[Codec, Codec]
    segments: Sequence[tuple[Parts, Parts]] = ()
    slots: Sequence[int] = ()
    dim: int = 0

    @property
    def kv_heads(self) -> int:
        """Hkv, once there are blocks."""
        return next(iter(self.segments[0][0].values())).shape[2]


class Snapshot(NamedTuple):
    """All that queries may attend to: pinned tokens, cold blocks, hot tokens, new ones.

    Their positions follow each other, but for `evicted` tokens that were let go after the
    pinned ones. Where nothing is held, arrays may be missing.

    bounds: what of these counts. pinned, hot: buffers. new: tokens that are in no tier yet.
    """

    bounds: Bounds
    cold: ColdBlocks
    pinned: Tokens[mx.array] | None = None
    hot: Tokens[mx.array] | None = None
    new: Tokens[mx.array] | None = None

    @property
    def new_count(self) -> int:
        """New tokens."""
        return self.new.length if self.new is not None else 0

    @property
    def kv_heads(self) -> int:
        """Hkv."""
        for tokens in (self.new, self.hot, self.pinned):
            if tokens is not None:
                return tokens.keys.shape[1]
        return self.cold.kv_heads

    def unencoded(self) -> list[Placed]:
        """Each unbroken run of tokens: pinned, hot in one or two, new."""
        bounds = self.bounds
        found: list[Placed] = []
        if self.pinned is not None and bounds.pinned:
            found.append((0, self.pinned.cut(0, bounds.pinned)))
        if self.hot is not None:
            for run in runs(bounds.hot_start, bounds.hot, [self.hot.length]):
                found.append((bounds.hot_position + run.done, self.hot.cut(run.at, run.stop)))
        if self.new is not None:
            found.append((bounds.new_position, self.new))
        return found

    def encoded(self, most: int | None = None) -> Iterator[tuple[int, Encoded, Encoded]]:
        """Position, keys and values [n, B, Hkv, ...] of each unbroken run of blocks, in order.

        most: blocks of a run at most.
        """
        bounds, cold = self.bounds, self.cold
        for run in runs(bounds.first_slot, bounds.blocks, cold.slots):
            step = most or run.stop - run.at
            for at in range(run.at, run.stop, step):
                some = slice(at, min(at + step, run.stop))
                keys, values = (
                    Encoded(parts={n: part[some] for n, part in parts.items()}, dim=cold.dim)
                    for parts in cold.segments[run.segment]
                )
                yield bounds.cold_position + (run.done + at - run.at) * bounds.block, keys, values

    def decoded(self, dtype: mx.Dtype) -> Tokens[mx.array]:
        """All tokens, oldest first: [B, Hkv, held and new, D] of `dtype`."""
        parts = self.unencoded()
        for position, *pair in self.encoded():
            keys, values = (
                side_by_side(codec.decode(encoded)).astype(dtype)
                for codec, encoded in zip(self.cold.codecs, pair, strict=True)
            )
            parts.append((position, Tokens(keys, values)))
        return joined([tokens for _, tokens in sorted(parts, key=lambda part: part[0])])


def side_by_side(blocks: mx.array) -> mx.array:
    """[N, B, Hkv, M, D] -> [B, Hkv, N * M, D]."""
    count, batch, heads, tokens, dim = blocks.shape
    return mx.moveaxis(blocks, 0, 2).reshape(batch, heads, count * tokens, dim)
