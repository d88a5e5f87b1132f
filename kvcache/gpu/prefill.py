"""Attention of many new tokens over all tiers, by MLX's fused attention.

The cold blocks are decoded, not rotated back, into a transient array beside all
other tokens, which are few and are rotated instead. A few KV heads at a time, so
that the transient keeps to a bound; where even one head's would not, or MLX has
no fused attention of the head dimension, tokens go in pieces whose softmaxes are
merged exactly.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import mlx.core as mx

from kvcache.codecs.base import Codec
from kvcache.gpu.expand import Heads, expand
from kvcache.gpu.kernel import Launcher, launch_on_device
from kvcache.gpu.shape import CallShape
from kvcache.gpu.tier_arrays import ColdBlocks, DenseTokens, HotRing, TierArrays
from kvcache.gpu.window import Mask, Run, Window
from kvcache.reference import Partial, attend_part, finish, merge

MOST_TRANSIENT = 64 * 2**20  # bytes
_FUSED_DIMS = (64, 80, 128)  # for others MLX's attention holds all scores (MLX 0.32 on Metal)
_FLOAT = 4

Pair = tuple[mx.array, mx.array]


@dataclass(frozen=True, kw_only=True)
class TierPrefill:
    """most_transient: bytes that a call may take at a time beside its input and its output."""

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
        source = _Source.of(tiers, shape, position, q.dtype, self.launch)
        pinned = tiers.pinned.count if tiers.pinned else 0
        low: list[int] = lowest.tolist()  # type: ignore[assignment]
        window = Window(lowest=tuple(low), position=position, pinned=pinned, scale=scale)
        mask = window.mask(source.runs)
        # An eighth is for small arrays on their way, then the outputs before they are joined.
        left = self.most_transient // 8 * 7 - q.nbytes
        left -= mask.nbytes if isinstance(mask, mx.array) else 0
        turned = source.turned_bytes_of_head(shape)
        each = source.decoded_bytes_of_head(shape) + turned
        fits = each <= left and shape.dim in _FUSED_DIMS
        step = max(1, min(shape.kv_heads, left // each))
        queries = q.reshape(shape.batch, shape.kv_heads, shape.group, shape.new, shape.dim)
        outputs = []
        for first in range(0, shape.kv_heads, step):
            heads = Heads(first=first, count=min(step, shape.kv_heads - first))
            taken = source.turned_queries(queries[:, heads.slice], heads)
            out = (
                _fused(taken, source, heads, scale, mask)
                if fits
                else _in_pieces(taken, source, heads, window, left - 2 * turned * heads.count)
            )
            outputs.append(source.turned_back(out, heads).astype(q.dtype))
            if step < shape.kv_heads:
                mx.eval(outputs[-1])  # lets go of the transient before the next
        return mx.concatenate(outputs, axis=1).reshape(q.shape)


@dataclass(frozen=True, kw_only=True)
class _Tokens:
    """Keys and values [B, heads, S, D] of a run, in the bases of the cold ones."""

    keys: mx.array
    values: mx.array
    run: Run

    def part(self, first: int, most: int) -> "_Tokens":
        """`most` tokens from `first`, or what there is."""
        count = min(most, self.run.count - first)
        some = slice(first, first + count)
        return _Tokens(
            keys=self.keys[:, :, some],
            values=self.values[:, :, some],
            run=Run(first=self.run.first + first, count=count),
        )


@dataclass(frozen=True, kw_only=True)
class _Source:
    """The tokens of all tiers in the order of positions.

    pinned, recent: as they are held, of all heads; hot and new tokens are one run.
    """

    pinned: _Tokens | None
    cold: ColdBlocks | None
    recent: _Tokens | None
    kv_heads: int
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
        new_at = position if tiers.new_position is None else tiers.new_position
        return cls(
            pinned=_first(tiers.pinned) if tiers.pinned else None,
            cold=tiers.cold if tiers.cold and tiers.cold.blocks else None,
            recent=_recent(tiers.hot, tiers.new, new_at),
            kv_heads=shape.kv_heads,
            dtype=dtype,
            launch=launch,
        )

    @property
    def runs(self) -> list[Run]:
        """Of each tier that holds something."""
        found = [self.pinned and self.pinned.run, self._cold_run, self.recent and self.recent.run]
        return [run for run in found if run]

    @property
    def _cold_run(self) -> Run | None:
        cold = self.cold
        return Run(first=cold.position, count=cold.blocks * cold.block) if cold else None

    def decoded_bytes_of_head(self, shape: CallShape) -> int:
        """Keys and values of one KV head, decoded and once more side by side."""
        tokens = sum(run.count for run in self.runs)
        return 4 * shape.batch * shape.dim * tokens * self.dtype.size

    def turned_bytes_of_head(self, shape: CallShape) -> int:
        """What is held unencoded, and queries and outputs, on their way through a rotation.

        In float32 before, with signs and after, beside what comes of it.
        """
        turned = sum(2 * part.run.count for part in (self.pinned, self.recent) if part)
        numbers = (turned + 2 * shape.rows) * (3 * _FLOAT + self.dtype.size)
        return shape.batch * shape.dim * numbers

    def turned_queries(self, q: mx.array, heads: Heads) -> mx.array:
        """q [B, heads, G, L, D] in the keys' basis."""
        codec = self.cold.key_codec if self.cold else None
        return self._turned(codec, q.flatten(2, 3), heads).reshape(q.shape)

    def turned_back(self, out: mx.array, heads: Heads) -> mx.array:
        """out [B, heads, G, L, D] back from the values' basis."""
        cold = self.cold
        basis = cold.value_codec.basis(self.kv_heads, out.shape[-1]) if cold else None
        if basis is None:
            return out
        signs = basis.signs[heads.slice, None, None]
        return (out.astype(mx.float32) @ basis.transposed) * signs

    def tokens(self, heads: Heads, most: int) -> Iterator[_Tokens]:
        """All tokens of some heads in order, about `most` at a time."""
        yield from self._unencoded(self.pinned, heads, most)
        if self.cold:
            step = max(1, most // self.cold.block)
            for first in range(0, self.cold.blocks, step):
                yield self._decoded(first, min(step, self.cold.blocks - first), heads)
        yield from self._unencoded(self.recent, heads, most)

    def _unencoded(self, tokens: _Tokens | None, heads: Heads, most: int) -> Iterator[_Tokens]:
        if tokens is not None:
            turned = self._turned_tokens(tokens, heads)
            for first in range(0, turned.run.count, most):
                yield turned.part(first, most)

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
            run=Run(first=some.position, count=count * some.block),
        )

    def _turned_tokens(self, tokens: _Tokens, heads: Heads) -> _Tokens:
        cold = self.cold
        codecs = (cold.key_codec, cold.value_codec) if cold else (None, None)
        pair = tokens.keys, tokens.values
        keys, values = (
            self._turned(codec, x[:, heads.slice], heads)
            for codec, x in zip(codecs, pair, strict=True)
        )
        return _Tokens(keys=keys, values=values, run=tokens.run)

    def _turned(self, codec: Codec | None, x: mx.array, heads: Heads) -> mx.array:
        """x [B, heads, S, D] in a codec's basis."""
        basis = codec.basis(self.kv_heads, x.shape[-1]) if codec else None
        if basis is not None:
            x = (x.astype(mx.float32) * basis.signs[heads.slice, None]) @ basis.matrix
        return x.astype(self.dtype)


def _fused(
    q: mx.array,
    source: _Source,
    heads: Heads,
    scale: float,
    mask: Mask,
) -> mx.array:
    """Attend q [B, heads, G, L, D] to all tokens at once; the same shape."""
    pieces = list(source.tokens(heads, most=max(run.count for run in source.runs)))
    out = mx.fast.scaled_dot_product_attention(
        q.flatten(1, 2),
        mx.concatenate([each.keys for each in pieces], axis=2),
        mx.concatenate([each.values for each in pieces], axis=2),
        scale=scale,
        mask=mask,
    )
    return out.reshape(q.shape)


def _in_pieces(
    q: mx.array, source: _Source, heads: Heads, window: Window, most_bytes: int
) -> mx.array:
    """The same by plain operations, in float32, on as many tokens at a time as fit the bound."""
    batch, taken, group, new, dim = q.shape
    # Scores and weights, keys and values, a mask.
    of_token = _FLOAT * batch * taken * (3 * group * new + 4 * dim) + 2 * new
    wide = q.astype(mx.float32).flatten(1, 2) * window.scale
    parts = (
        attend_part(
            wide,
            tokens.keys.astype(mx.float32),
            tokens.values.astype(mx.float32),
            window.sees(tokens.run),
        )
        for tokens in source.tokens(heads, most=max(1, most_bytes // of_token))
    )
    state: Partial | None = None
    for part in parts:
        state = part if state is None else merge(state, part)
        mx.eval(*state)
    assert state, "attention to nothing"
    return finish(state).reshape(q.shape)


def _first(pinned: DenseTokens) -> _Tokens:
    some = slice(0, pinned.count)
    return _Tokens(
        keys=pinned.keys[:, :, some],
        values=pinned.values[:, :, some],
        run=Run(first=0, count=pinned.count),
    )


def _recent(hot: HotRing | None, new: DenseTokens | None, new_at: int) -> _Tokens | None:
    """Hot and new tokens, which follow each other."""
    pieces = [*(_in_order(hot) if hot else ()), *([(new.keys, new.values)] if new else ())]
    if not pieces:
        return None
    keys, values = (mx.concatenate(list(side), axis=2) for side in zip(*pieces, strict=True))
    first = hot.position if hot else new_at
    return _Tokens(keys=keys, values=values, run=Run(first=first, count=keys.shape[2]))


def _in_order(hot: HotRing) -> list[Pair]:
    """Keys and values of the hot ring, oldest first, in two pieces."""
    to_end = min(hot.count, hot.keys.shape[2] - hot.start)
    first, rest = slice(hot.start, hot.start + to_end), slice(0, hot.count - to_end)
    return [(hot.keys[:, :, some], hot.values[:, :, some]) for some in (first, rest)]
