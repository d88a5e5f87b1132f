"""Attention of many new tokens over all tiers, by MLX's fused attention.

The cold blocks are decoded, not rotated back, into a transient array beside all
other tokens, which are few and are rotated instead. While the window moves, rows
meet the pinned tokens at different distances: their keys come once for each, and
the mask opens each row its own. A few KV heads at a time, so that the transient
keeps to a bound; where even one head's would not, or MLX has no fused attention of
the head dimension, tokens go in pieces whose softmaxes are merged exactly.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, repeat
from typing import NamedTuple

import mlx.core as mx

from kvcache.gpu.expand import Heads, expand
from kvcache.gpu.kernel import Launcher, launch_on_device
from kvcache.gpu.shape import CallShape
from kvcache.reference import Mask, Partial, attend_part, finish, merge
from kvcache.sight import Sight
from kvcache.snapshot import Snapshot, Tokens, joined

MOST_TRANSIENT = 64 * 2**20  # bytes
_FUSED_DIMS = (64, 72, 80, 96, 128)  # for others MLX 0.32.1 on Metal holds all scores
_FLOAT = 4


@dataclass(frozen=True, kw_only=True)
class TierPrefill:
    """most_transient: bytes that a call may take at a time beside its input and its output."""

    launch: Launcher = launch_on_device
    most_transient: int = MOST_TRANSIENT

    def attend(self, q: mx.array, held: Snapshot, sight: Sight, *, scale: float) -> mx.array:
        """As `TierDecoder.attend`; q [B, Hq, L, D] is met by pinned keys that turn instead.

        Keys turned the other way give the scores that queries turned for them would.
        Where the tokens do not fit in one transient this evaluates as it goes. Raises
        CacheError as the decoder.
        """
        shape, bounds = CallShape.of(q.shape, held.kv_heads), held.bounds
        copies = len(sight.turning) if bounds.pinned else 1
        columns = sight.columns + (copies - 1) * bounds.pinned
        # An eighth is for small arrays on their way, then the outputs before they are joined.
        left = self.most_transient // 8 * 7 - q.nbytes
        masked = 0 if sight.is_whole else shape.new * columns
        rotated = _rotated_bytes(shape, columns - bounds.blocks * bounds.block, q.dtype)
        each = 2 * shape.batch * shape.dim * columns * q.dtype.size + rotated
        fits = each <= left - masked and shape.dim in _FUSED_DIMS
        step = max(1, min(shape.kv_heads, (left - masked) // each))
        queries = q.reshape(shape.batch, shape.kv_heads, shape.rows, shape.dim)
        mask = _mask(held, sight) if fits else None
        outputs = []
        for first in range(0, shape.kv_heads, step):
            heads = Heads(first=first, count=min(step, shape.kv_heads - first))
            reader = _Reader(launch=self.launch, held=held, sight=sight, heads=heads, dtype=q.dtype)
            some = reader.rotated(0, queries[:, heads.slice])
            some = some.reshape(shape.batch, -1, shape.new, shape.dim)
            if fits:
                out = mx.fast.scaled_dot_product_attention(
                    some, *reader.side_by_side(columns), scale=scale, mask=mask
                )
            else:
                # Scores and weights, keys and values, a mask.
                floats = shape.batch * heads.count * (3 * shape.rows + 4 * shape.dim)
                most = (left - 2 * rotated * heads.count) // (_FLOAT * floats + 2 * shape.new)
                out = _in_pieces(some, reader.pieces(max(1, most)), scale)
            out = out.reshape(shape.batch, heads.count, shape.rows, shape.dim)
            outputs.append(reader.rotated_back(out).astype(q.dtype))
            if step < shape.kv_heads:
                mx.eval(outputs[-1])  # lets go of the transient before the next
        return mx.concatenate(outputs, axis=1).reshape(q.shape)


class _Piece(NamedTuple):
    """Tokens of some heads, and which rows see them: boolean [L, S], None where all do."""

    tokens: Tokens[mx.array]
    mask: mx.array | None


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """Some KV heads of a snapshot, in the bases of its cold blocks."""

    launch: Launcher
    held: Snapshot
    sight: Sight
    heads: Heads
    dtype: mx.Dtype

    def rotated(self, role: int, x: mx.array) -> mx.array:
        """x [B, heads, S, D] in the basis of keys (role 0) or values (1)."""
        held = self.held
        codec = held.cold.codecs[role]
        basis = codec.basis(held.kv_heads, x.shape[-1]) if held.bounds.blocks else None
        if basis is not None:
            x = (x.astype(mx.float32) * basis.signs[self.heads.slice, None]) @ basis.matrix
        return x.astype(self.dtype)

    def rotated_back(self, out: mx.array) -> mx.array:
        """out [B, heads, S, D] back from the values' basis."""
        held = self.held
        codec = held.cold.codecs[1]
        basis = codec.basis(held.kv_heads, out.shape[-1]) if held.bounds.blocks else None
        if basis is None:
            return out
        return (out.astype(mx.float32) @ basis.transposed) * basis.signs[self.heads.slice, None]

    def side_by_side(self, columns: int) -> Tokens[mx.array]:
        """All tokens: the blocks', a copy of the pinned ones for each turn, and the others."""
        held, rest = self.held, [*self._pinned(), *self._others()]
        if not held.bounds.blocks:
            return joined(rest)
        keys, values = self._decoded(held, columns)
        # Behind the blocks, in arrays that nobody else has: nothing is copied for it.
        start = held.bounds.blocks * held.bounds.block
        for tokens in rest:
            stop = start + tokens.length
            keys[:, :, start:stop], values[:, :, start:stop] = tokens
            start = stop
        return Tokens(keys, values)

    def pieces(self, most: int) -> Iterator[_Piece]:
        """The same, about `most` tokens at a time."""
        held, bounds, sight = self.held, self.held.bounds, self.sight
        step = max(1, most // bounds.block)
        for first in range(0, bounds.blocks, step):
            slot, count = bounds.first_slot + first, min(step, bounds.blocks - first)
            some = replace(bounds, first_slot=slot % sum(held.cold.slots), blocks=count)
            position, length = bounds.cold_position + first * bounds.block, count * bounds.block
            decoded = self._decoded(held._replace(bounds=some), length)
            yield _Piece(decoded, sight.of(position, length))
        for copies in self._pinned():
            for at in range(0, copies.length, most):
                stop = min(at + most, copies.length)
                yield _Piece(copies.cut(at, stop), _own(sight, bounds.pinned, at, stop))
        for others in self._others():
            for at in range(0, others.length, most):
                piece = others.cut(at, at + most)
                yield _Piece(piece, sight.of(bounds.hot_position + at, piece.length))

    def _decoded(self, blocks: Snapshot, room: int) -> Tokens[mx.array]:
        """The blocks' tokens, at the beginning of arrays with room for more."""
        keys, values = (
            expand(self.launch, blocks, role, self.heads, self.dtype, room=room)
            for role in range(2)
        )
        return Tokens(keys, values)

    def _pinned(self) -> list[Tokens[mx.array]]:
        """For each turn, one after the other, the pinned tokens, their keys turned ahead by it."""
        pinned, count, sight = self.held.pinned, self.held.bounds.pinned, self.sight
        if not (pinned and count):
            return []
        tiled = 1, 1, len(sight.turning), 1
        keys, values = (mx.tile(x[:, self.heads.slice], tiled) for x in pinned.cut(0, count))
        if sight.rotation:
            ahead = (repeat(-turn, count) for turn, _ in sight.turning)
            keys = sight.rotation(keys.astype(mx.float32), tuple(chain.from_iterable(ahead)))
        return [self._in_basis(keys, values)]

    def _others(self) -> list[Tokens[mx.array]]:
        """The hot tokens and the new ones, which follow each other."""
        held, heads = self.held, self.heads.slice
        runs = [
            Tokens(keys[:, heads], values[:, heads])
            for position, (keys, values) in held.unencoded()
            if position >= held.bounds.hot_position
        ]
        return [self._in_basis(*joined(runs))] if runs else []

    def _in_basis(self, keys: mx.array, values: mx.array) -> Tokens[mx.array]:
        return Tokens(self.rotated(0, keys), self.rotated(1, values))


def _mask(held: Snapshot, sight: Sight) -> Mask:
    """Which rows see which of all tokens side by side."""
    if sight.is_whole:
        return "causal"
    bounds = held.bounds
    pinned, cold = bounds.pinned, bounds.blocks * bounds.block
    recent = bounds.hot + held.new_count
    copies = cold + len(sight.turning) * pinned
    # One array, of which most is seen by all: the rest is written into it.
    mask = mx.ones((sight.queries, copies + recent), mx.bool_)
    if pinned and (own := _own(sight, pinned, 0, copies - cold)) is not None:
        mask[:, cold:copies] = own
    for column, position, count in (
        (0, bounds.cold_position, cold),
        (copies, bounds.hot_position, recent),
    ):
        seen, stop = sight.seen_by_all(position, count), position + count
        for first, last in ((position, seen.start), (seen.stop, stop)):
            if first < last:
                at = column + first - position
                mask[:, at : at + last - first] = sight.compared(first, last)
    return mask


def _own(sight: Sight, pinned: int, start: int, stop: int) -> mx.array | None:
    """Which rows see which of the pinned tokens' copies [start, stop): each those of its turn."""
    if len(sight.turning) == 1:
        return sight.of(start, stop - start)
    rows = [turn for turn, (_, queries) in enumerate(sight.turning) for _ in range(queries)]
    return mx.array(rows)[:, None] == mx.arange(start, stop)[None] // pinned


def _in_pieces(q: mx.array, pieces: Iterator[_Piece], scale: float) -> mx.array:
    """The same by plain operations, in float32, some tokens at a time."""
    wide = q.astype(mx.float32) * scale
    state: Partial | None = None
    for (keys, values), mask in pieces:
        part = attend_part(wide, keys.astype(mx.float32), values.astype(mx.float32), mask)
        state = part if state is None else merge(state, part)
        mx.eval(*state)
    assert state, "attention to nothing"
    return finish(state)


def _rotated_bytes(shape: CallShape, unencoded: int, dtype: mx.Dtype) -> int:
    """Of one KV head: unencoded tokens, queries and outputs on their way through a rotation.

    In float32 before, with signs and after, beside what comes of it.
    """
    numbers = 2 * (unencoded + shape.rows) * (3 * _FLOAT + dtype.size)
    return shape.batch * shape.dim * numbers
