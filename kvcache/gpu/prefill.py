"""Attention of many new tokens over all tiers, by MLX's fused attention.

The cold blocks are decoded, not rotated back, into a transient array beside all
other tokens, which are few and are rotated instead. A few KV heads at a time, so
that the transient keeps to a bound; where even one head's would not, its tokens
go in pieces whose softmaxes are merged exactly.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import mlx.core as mx

from kvcache.codecs.base import Codec
from kvcache.gpu.expand import Heads, expand
from kvcache.gpu.kernel import Launcher, launch_on_device
from kvcache.gpu.shape import CallShape
from kvcache.gpu.tiers import ColdBlocks, HotRing, TierArrays

MOST_TRANSIENT = 64 * 2**20  # bytes


@dataclass(frozen=True, kw_only=True)
class TierPrefill:
    """most_transient: bytes that decoded tokens, masks and scores may take at a time."""

    launch: Launcher = launch_on_device
    most_transient: int = MOST_TRANSIENT

    def attend(
        self, q: mx.array, tiers: TierArrays, *, lowest: mx.array, position: int, scale: float
    ) -> mx.array:
        """As `TierDecoder.attend`, but pinned keys come as these queries see them.

        q [B, Hq, L, D]. Pinned keys rotated the other way give the scores that
        queries rotated for them would. Where the tokens do not fit in one
        transient this evaluates as it goes. Raises CacheError as the decoder.
        """
        shape = CallShape.of(q, tiers.kv_heads)
        pinned = tiers.pinned.count if tiers.pinned else 0
        window = _Window(lowest=lowest, position=position, pinned=pinned, scale=scale)
        source = _Source.of(tiers, shape, position, q.dtype, self.launch)
        each = source.bytes_of_head(shape.batch, shape.new)
        fits = each <= self.most_transient
        step = max(1, min(shape.kv_heads, self.most_transient // each))
        queries = source.queries(q, shape)
        outputs = []
        for first in range(0, shape.kv_heads, step):
            heads = Heads(first=first, count=min(step, shape.kv_heads - first))
            taken = queries[:, heads.slice]
            outputs.append(
                _fused(taken, source, heads, window)
                if fits
                else _in_pieces(taken, source, heads, window, self.most_transient)
            )
            if step < shape.kv_heads:
                mx.eval(outputs[-1])  # lets go of the transient before the next
        return source.outputs(mx.concatenate(outputs, axis=1)).reshape(q.shape).astype(q.dtype)


@dataclass(frozen=True, kw_only=True)
class _Window:
    """lowest [L]: the oldest position that each query sees, but for the first `pinned` ones.

    position: of the first query.
    """

    lowest: mx.array
    position: int
    pinned: int
    scale: float

    def sees(self, positions: mx.array) -> mx.array:
        """Whether each query sees the tokens at positions [S]: [L, S]."""
        own = self.position + mx.arange(self.lowest.shape[0])[:, None]
        kept = (positions >= self.lowest[:, None]) | (positions < self.pinned)
        return kept & (positions <= own)


@dataclass(frozen=True, kw_only=True)
class _Tokens:
    """Keys and values [B, heads, S, D] in the bases of the cold ones, and positions [S]."""

    keys: mx.array
    values: mx.array
    positions: mx.array

    def part(self, heads: Heads, first: int, count: int) -> "_Tokens":
        """Of some heads, tokens from `first`."""
        some = slice(first, first + count)
        return _Tokens(
            keys=self.keys[:, heads.slice, some],
            values=self.values[:, heads.slice, some],
            positions=self.positions[some],
        )


@dataclass(frozen=True, kw_only=True)
class _Source:
    """The tokens of all tiers: cold ones encoded, the others as they are read."""

    cold: ColdBlocks | None
    others: _Tokens
    dtype: mx.Dtype
    launch: Launcher

    @classmethod
    def of(
        cls,
        tiers: TierArrays,
        shape: CallShape,
        position: int,
        dtype: mx.Dtype,
        launch: Launcher,
    ) -> "_Source":
        """From what a caller hands over."""
        cold = tiers.cold if tiers.cold and tiers.cold.blocks else None
        none = mx.zeros((shape.batch, shape.kv_heads, 0, shape.dim), dtype)
        pieces = [(none, none, mx.zeros(0, mx.int32)), *_unencoded(tiers, position)]
        keys, values, positions = (list(each) for each in zip(*pieces, strict=True))
        key_codec, value_codec = (cold.key_codec, cold.value_codec) if cold else (None, None)
        others = _Tokens(
            keys=_rotated(key_codec, mx.concatenate(keys, 2)).astype(dtype),
            values=_rotated(value_codec, mx.concatenate(values, 2)).astype(dtype),
            positions=mx.concatenate(positions),
        )
        return cls(cold=cold, others=others, dtype=dtype, launch=launch)

    def queries(self, q: mx.array, shape: CallShape) -> mx.array:
        """q as [B, Hkv, G, L, D], in the keys' basis."""
        by_head = q.reshape(shape.batch, shape.kv_heads, shape.rows, shape.dim)
        turned = _rotated(self.cold.key_codec if self.cold else None, by_head).astype(q.dtype)
        return turned.reshape(*turned.shape[:2], shape.group, shape.new, shape.dim)

    def outputs(self, out: mx.array) -> mx.array:
        """out [B, Hkv, G, L, D] back from the values' basis, as [B, Hkv, G * L, D]."""
        by_head = out.astype(mx.float32).flatten(2, 3)
        return self.cold.value_codec.unrotate(by_head) if self.cold else by_head

    @property
    def count(self) -> int:
        """Tokens of all tiers."""
        cold = self.cold.blocks * self.cold.block if self.cold else 0
        return len(self.others.positions) + cold

    def bytes_of_head(self, batch: int, new: int) -> int:
        """What one KV head takes: keys and values, decoded and once more side by side, a mask."""
        return self.count * (4 * batch * self.others.keys.shape[3] * self.dtype.size + new)

    def tokens(self, heads: Heads, most: int) -> Iterator[_Tokens]:
        """All tokens of some heads, about `most` at a time."""
        for first in range(0, len(self.others.positions), most):
            yield self.others.part(heads, first, most)
        if self.cold:
            step = max(1, most // self.cold.block)
            for first in range(0, self.cold.blocks, step):
                yield self._decoded(first, min(step, self.cold.blocks - first), heads)

    def _decoded(self, first: int, count: int, heads: Heads) -> _Tokens:
        assert self.cold
        some = replace(
            self.cold,
            first_slot=(self.cold.first_slot + first) % self.cold.slots,
            blocks=count,
            position=self.cold.position + first * self.cold.block,
        )
        return _Tokens(
            keys=expand(self.launch, some, 0, heads, self.dtype),
            values=expand(self.launch, some, 1, heads, self.dtype),
            positions=some.position + mx.arange(count * some.block),
        )


@dataclass(frozen=True, kw_only=True)
class _Softmax:
    """Over the tokens so far: top and total [B, heads, G, L], weighted values [..., D]."""

    top: mx.array
    total: mx.array
    sums: mx.array

    def and_of(self, q: mx.array, tokens: _Tokens, window: _Window) -> "_Softmax":
        """And over these tokens; q [B, heads, G, L, D]."""
        keys, values = (x.astype(mx.float32)[:, :, None] for x in (tokens.keys, tokens.values))
        seen = window.sees(tokens.positions)
        scores = q @ keys.swapaxes(-1, -2) * window.scale  # [B, heads, G, L, S]
        top = mx.maximum(self.top, mx.where(seen, scores, -1e30).max(axis=-1))
        weights = mx.where(seen, mx.exp(scores - top[..., None]), 0.0)
        fade = mx.exp(self.top - top)
        return _Softmax(
            top=top,
            total=self.total * fade + weights.sum(axis=-1),
            sums=self.sums * fade[..., None] + weights @ values,
        )


def _fused(q: mx.array, source: _Source, heads: Heads, window: _Window) -> mx.array:
    """Attend q [B, heads, G, L, D] to all tokens at once; the same shape."""
    pieces = list(source.tokens(heads, most=source.count))
    out = mx.fast.scaled_dot_product_attention(
        q.flatten(1, 2),
        mx.concatenate([each.keys for each in pieces], axis=2),
        mx.concatenate([each.values for each in pieces], axis=2),
        scale=window.scale,
        mask=window.sees(mx.concatenate([each.positions for each in pieces])),
    )
    return out.reshape(q.shape)


def _in_pieces(
    q: mx.array, source: _Source, heads: Heads, window: _Window, most_bytes: int
) -> mx.array:
    """The same by plain operations, in float32, on as many tokens at a time as fit the bound."""
    batch, taken, group, new, dim = q.shape
    of_token = (
        4 * batch * taken * (3 * group * new + 4 * dim)
    )  # scores and weights, keys and values
    wide = q.astype(mx.float32)
    rows = q.shape[:-1]
    state = _Softmax(top=mx.full(rows, -1e30), total=mx.zeros(rows), sums=mx.zeros(q.shape))
    for tokens in source.tokens(heads, most=max(1, most_bytes // of_token)):
        state = state.and_of(wide, tokens, window)
        mx.eval(state.top, state.total, state.sums)
    return state.sums / state.total[..., None]


def _unencoded(tiers: TierArrays, position: int) -> Iterator[tuple[mx.array, mx.array, mx.array]]:
    """Keys, values [B, Hkv, count, D] and positions of pinned, hot and new tokens."""
    if pinned := tiers.pinned:
        some = slice(0, pinned.count)
        yield pinned.keys[:, :, some], pinned.values[:, :, some], mx.arange(pinned.count)
    if hot := tiers.hot:
        yield *_in_order(hot), hot.position + mx.arange(hot.count)
    if new := tiers.new:
        first = position if tiers.new_position is None else tiers.new_position
        yield new.keys, new.values, first + mx.arange(new.count)


def _in_order(hot: HotRing) -> tuple[mx.array, mx.array]:
    """Keys and values of the hot ring, oldest first."""
    to_end = min(hot.count, hot.keys.shape[2] - hot.start)
    first, rest = slice(hot.start, hot.start + to_end), slice(0, hot.count - to_end)
    keys, values = (
        mx.concatenate([x[:, :, first], x[:, :, rest]], axis=2) for x in (hot.keys, hot.values)
    )
    return keys, values


def _rotated(codec: Codec | None, x: mx.array) -> mx.array:
    return codec.rotate(x) if codec and x.size else x
