"""Attention of many new tokens over all tiers, by MLX's fused attention.

The cold blocks are decoded, not rotated back, into a transient array beside all
other tokens, which are few and are rotated instead. While the window moves, rows
meet the pinned tokens at different distances: their keys come once for each, and
the mask opens each row its own. A few KV heads at a time, so that the transient
keeps to a bound; where even one head's would not, or MLX has no fused attention of
the head dimension, tokens go in pieces whose softmaxes are merged exactly.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from typing import NamedTuple

import mlx.core as mx

from kvcache.gpu.expand import Heads, expand
from kvcache.gpu.kernel import Launcher, launch_on_device
from kvcache.gpu.shape import CallShape
from kvcache.reference import Mask, Partial, attend_part, finish, merge
from kvcache.sight import Sight
from kvcache.snapshot import Placed, Snapshot, Tokens, joined

MOST_TRANSIENT = 64 * 2**20  # bytes
_FUSED_DIMS = (64, 80, 128)  # for others MLX's attention holds all scores (MLX 0.32 on Metal)
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
        shape = CallShape.of(q, held.kv_heads)
        copies = len(sight.turning) if held.pinned_count else 1
        columns = sight.columns + (copies - 1) * held.pinned_count
        # An eighth is for small arrays on their way, then the outputs before they are joined.
        left = self.most_transient // 8 * 7 - q.nbytes
        # A mask, and what it is made of.
        left -= 0 if sight.is_whole else 2 * shape.new * columns
        rotated = _rotated_bytes(shape, columns - held.blocks * held.block, q.dtype)
        # Keys and values, decoded and once more side by side.
        each = 4 * shape.batch * shape.dim * columns * q.dtype.size + rotated
        fits = each <= left and shape.dim in _FUSED_DIMS
        step = max(1, min(shape.kv_heads, left // each))
        queries = q.reshape(shape.batch, shape.kv_heads, shape.rows, shape.dim)
        mask: Mask = "causal" if sight.is_whole else None
        outputs = []
        for first in range(0, shape.kv_heads, step):
            heads = Heads(first=first, count=min(step, shape.kv_heads - first))
            reader = _Reader(launch=self.launch, held=held, sight=sight, heads=heads, dtype=q.dtype)
            some = reader.rotated(0, queries[:, heads.slice])
            some = some.reshape(shape.batch, -1, shape.new, shape.dim)
            if fits:
                pieces = list(reader.pieces(columns))
                mask = _side_by_side(pieces, shape.new) if mask is None else mask
                out = _fused(some, pieces, mask, scale)
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
        basis = held.codecs[role].basis(held.kv_heads, x.shape[-1]) if held.blocks else None
        if basis is not None:
            x = (x.astype(mx.float32) * basis.signs[self.heads.slice, None]) @ basis.matrix
        return x.astype(self.dtype)

    def rotated_back(self, out: mx.array) -> mx.array:
        """out [B, heads, S, D] back from the values' basis."""
        held = self.held
        basis = held.codecs[1].basis(held.kv_heads, out.shape[-1]) if held.blocks else None
        if basis is None:
            return out
        return (out.astype(mx.float32) @ basis.transposed) * basis.signs[self.heads.slice, None]

    def pieces(self, most: int) -> Iterator[_Piece]:
        """All tokens, about `most` at a time: the pinned ones, and others in their order."""
        held, unencoded = self.held, self.held.unencoded()
        pinned = 1 if held.pinned_count else 0
        for _, tokens in unencoded[:pinned]:
            yield from self._pinned(tokens, most)
        step = max(1, most // held.block)
        for first in range(0, held.blocks, step):
            yield self._decoded(first, min(step, held.blocks - first))
        if others := unencoded[pinned:]:
            yield from self._unencoded(others, most)

    def _pinned(self, tokens: Tokens[mx.array], most: int) -> Iterator[_Piece]:
        """A copy of the pinned tokens for each turn, whose keys are turned ahead by it."""
        turning, count = self.sight.turning, tokens.length
        keys, values = (mx.tile(x[:, self.heads.slice], (1, 1, len(turning), 1)) for x in tokens)
        if self.sight.rotation:
            ahead = chain.from_iterable(repeat(-turn, count) for turn, _ in turning)
            keys = self.sight.rotation(keys.astype(mx.float32), tuple(ahead))
        copies = Tokens(self.rotated(0, keys), self.rotated(1, values))
        rows = mx.array([i for i, (_, queries) in enumerate(turning) for _ in range(queries)])
        for at in range(0, copies.length, most):
            stop = min(at + most, copies.length)
            mask = self.sight.of(at, stop - at)
            if len(turning) > 1:
                mask = rows[:, None] == mx.arange(at, stop)[None] // count
            yield _Piece(copies.cut(at, stop), mask)

    def _unencoded(self, pieces: Sequence[Placed], most: int) -> Iterator[_Piece]:
        """Of pieces that follow each other."""
        (first, _), heads = pieces[0], self.heads.slice
        keys, values = joined([Tokens(k[:, heads], v[:, heads]) for _, (k, v) in pieces])
        tokens = Tokens(self.rotated(0, keys), self.rotated(1, values))
        for at in range(0, tokens.length, most):
            some = tokens.cut(at, at + most)
            yield _Piece(some, self.sight.of(first + at, some.length))

    def _decoded(self, first: int, count: int) -> _Piece:
        """`count` blocks from the first'th on."""
        held = self.held
        some = replace(held, first_slot=(held.first_slot + first) % sum(held.slots), blocks=count)
        keys, values = (
            expand(self.launch, some, role, self.heads, self.dtype) for role in range(2)
        )
        mask = self.sight.of(held.cold_position + first * held.block, count * held.block)
        return _Piece(Tokens(keys, values), mask)


def _side_by_side(pieces: Sequence[_Piece], rows: int) -> mx.array:
    """One mask [rows, columns] of all pieces."""
    return mx.concatenate(
        [
            mx.ones((rows, tokens.length), mx.bool_) if mask is None else mask
            for tokens, mask in pieces
        ],
        axis=1,
    )


def _fused(q: mx.array, pieces: Sequence[_Piece], mask: Mask, scale: float) -> mx.array:
    """Attend q [B, heads * G, L, D] to all tokens at once; the same shape."""
    keys, values = joined([tokens for tokens, _ in pieces])
    return mx.fast.scaled_dot_product_attention(q, keys, values, scale=scale, mask=mask)


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
