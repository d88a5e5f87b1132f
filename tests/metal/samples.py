"""Tiers with something in them, and the attention over them as its definition reads."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from kvcache import CacheConfig, codec
from kvcache.codecs.base import Codec, Encoded, Parts
from kvcache.sight import Sight
from kvcache.snapshot import Bounds, ColdBlocks, Snapshot, Tokens
from kvcache.turn import Rotation
from tests.kvcache.oracle import attention

Array = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Case:
    """The sizes of a call.

    Positions begin after `evicted`, so that they differ from indices. Queries are float32 unless
    told: then the output is not rounded, and errors of the kernels show. one_query: pinned tokens
    are met by the same queries as all others; else these are turned, in so many pairs of channels,
    None for all, which lie as `traditional` says. in_tiers: queries of tokens that are in the tiers
    already, so that there are no new ones and later tokens must not be seen. window: how many
    tokens each query sees, itself the last, where none is pinned. threadgroups: the
    decoder's; with few of them each takes several blocks. sharpness: of scores; with 50 their
    powers of two are out of float32's range.
    """

    keys: str = CacheConfig.keys
    values: str = CacheConfig.values
    dim: int = 64
    group: int = 3
    new: int = 1
    batch: int = 1
    kv_heads: int = 2
    block: int = 64
    segments: tuple[int, ...] = (2, 1, 3)
    slots: int = 6
    first_slot: int = 5
    blocks: int = 4
    pinned: int = 4
    ring: int = 83
    hot_start: int = 60
    hot: int = 50
    evicted: int = 30
    window_step: int = 0
    window: int | None = None
    dtype: mx.Dtype = mx.float16
    query: mx.Dtype = mx.float32
    one_query: bool = False
    pairs: int | None = None
    traditional: bool = True
    in_tiers: int = 0
    threadgroups: int = 512
    sharpness: float = 1.3
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Arguments of a call and what it must give, [B, Hq, L, D] in float64."""

    q: mx.array
    held: Snapshot
    sight: Sight
    scale: float
    expected: Array


def make(case: Case, *, codec_seed: int = 3) -> Sample:
    """Random tiers of a case."""
    random = np.random.default_rng(case.seed)
    size = case.batch, case.kv_heads

    def tokens(count: int) -> Tokens[mx.array]:
        drawn = [
            random.normal(size=(*size, count, case.dim)) + random.normal(size=case.dim)
            for _ in "kv"
        ]
        return Tokens(*(mx.array(x.astype(np.float32)).astype(case.dtype) for x in drawn))

    heads, queries = case.kv_heads * case.group, case.in_tiers or case.new
    drawn = random.normal(size=(case.batch, heads, queries, case.dim)).astype(np.float32)
    q = mx.array(drawn).astype(case.query)
    total = case.evicted + case.pinned + case.blocks * case.block + case.hot
    codecs = codec(case.keys, seed=codec_seed), codec(case.values, seed=codec_seed)
    held = Snapshot(
        new=None if case.in_tiers else tokens(case.new),
        pinned=tokens(case.pinned + 3) if case.pinned else None,
        hot=tokens(case.ring) if case.hot else None,
        cold=ColdBlocks(
            codecs=codecs,
            segments=_segments(case, codecs, random) if case.blocks else (),
            slots=(*case.segments, case.slots - sum(case.segments)),
            dim=case.dim,
        ),
        bounds=Bounds(
            evicted=case.evicted,
            pinned=case.pinned,
            first_slot=case.first_slot,
            blocks=case.blocks,
            block=case.block,
            hot=case.hot,
            hot_start=case.hot_start,
        ),
    )
    position = total - case.in_tiers
    gone = (
        min(case.evicted + case.window_step * i, position + i - case.pinned) for i in range(queries)
    )
    sight = Sight(
        position=position,
        gone=tuple(max(0, each) for each in gone),
        total=total,
        pinned=case.pinned,
        evicted=case.evicted,
        window=case.window,
        new=held.new_count,
        rotation=_rotation(case),
    )
    scale = case.sharpness / sqrt(case.dim)
    return Sample(
        q=q,
        held=held,
        sight=sight,
        scale=scale,
        expected=_expected(q, _turned(_wide(q), sight), held, sight, scale),
    )


def _segments(
    case: Case, codecs: tuple[Codec, Codec], random: np.random.Generator
) -> list[tuple[Parts, Parts]]:
    size = case.batch, case.kv_heads, case.block, case.dim
    segments: list[tuple[Parts, Parts]] = []
    for count in case.segments:
        pair = []
        for each in codecs:
            drawn = random.normal(size=(count, *size)) + random.normal(size=case.dim)
            slots = [each.encode(mx.array(block.astype(np.float32))).parts for block in drawn]
            pair.append({name: mx.stack([slot[name] for slot in slots]) for name in slots[0]})
        segments.append((pair[0], pair[1]))
    return segments


def _rotation(case: Case) -> Rotation | None:
    if case.one_query:
        return None
    pairs = case.pairs or case.dim // 2
    return Rotation(periods=500.0 ** (np.arange(pairs) / pairs), traditional=case.traditional)


def _turned(q: Array, sight: Sight) -> Array:
    """Each query turned back by the tokens let go before it, by complex numbers."""
    if sight.rotation is None:
        return q
    periods, turned = sight.rotation.periods, q.copy()
    pairs = len(periods)
    first = np.arange(pairs) * (2 if sight.rotation.traditional else 1)
    second = first + (1 if sight.rotation.traditional else pairs)
    by = np.exp(-1j * np.array(sight.gone)[:, None] / periods)
    both = (q[..., first] + 1j * q[..., second]) * by
    turned[..., first], turned[..., second] = both.real, both.imag
    return turned


def _expected(q: mx.array, q_sink: Array, held: Snapshot, sight: Sight, scale: float) -> Array:
    """Attention of each query to all it sees, one softmax over every tier."""
    keys, values, positions = (list(each) for each in zip(*_pieces(held), strict=True))
    k, v, at = np.concatenate(keys, 2), np.concatenate(values, 2), np.concatenate(positions)
    out = np.zeros(q.shape)
    for i in range(q.shape[2]):
        # The pinned tokens meet the second query: append it as channels of its own.
        both = np.concatenate([_wide(q[:, :, i : i + 1]), q_sink[:, :, i : i + 1]], 3)
        is_pinned = at < held.bounds.pinned
        apart = is_pinned[:, None]
        split = np.concatenate([np.where(apart, 0, k), np.where(apart, k, 0)], 3)
        seen = (is_pinned | (at >= sight.pinned + sight.gone[i])) & (at <= sight.position + i)
        if sight.window is not None:
            seen &= at > sight.position + i - sight.window
        visible = np.broadcast_to(seen, (q.shape[0], 1, len(at)))
        padded = np.concatenate([v, np.zeros_like(v)], 3)
        out[:, :, i : i + 1] = attention(both, split, padded, scale, visible)[..., : q.shape[3]]
    return out


def _pieces(held: Snapshot) -> Iterator[tuple[Array, Array, Positions]]:
    """Keys, values and positions of each tier."""
    bounds, cold = held.bounds, held.cold
    if held.pinned:
        keys, values = map(_wide, held.pinned)
        count = bounds.pinned
        yield keys[:, :, :count], values[:, :, :count], np.arange(count)
    position = bounds.pinned + bounds.evicted
    for i in range(bounds.blocks):
        parts = _slot(cold, (bounds.first_slot + i) % sum(cold.slots))
        keys, values = (
            _wide(each.decode(Encoded(parts=part, dim=cold.dim)))
            for each, part in zip(cold.codecs, parts, strict=True)
        )
        yield keys, values, position + np.arange(bounds.block)
        position += bounds.block
    if held.hot:
        order = (bounds.hot_start + np.arange(bounds.hot)) % held.hot.length
        keys, values = map(_wide, held.hot)
        yield keys[:, :, order], values[:, :, order], position + np.arange(bounds.hot)
    if held.new:
        first = position + bounds.hot
        yield _wide(held.new.keys), _wide(held.new.values), first + np.arange(held.new_count)


def _slot(cold: ColdBlocks, slot: int) -> tuple[Parts, Parts]:
    for pair, size in zip(cold.segments, cold.slots, strict=False):
        if slot < size:
            keys, values = ({name: part[slot] for name, part in parts.items()} for parts in pair)
            return keys, values
        slot -= size
    raise AssertionError("a block in a slot that is not there")


def _wide(x: mx.array) -> Array:
    return np.array(x.astype(mx.float32), dtype=np.float64)


def tolerance(case: Case) -> float:
    """What the output's own dtype rounds off, and float32 sums and scores."""
    exact = 1e-5 * max(1.0, case.sharpness)
    return {mx.float32: exact, mx.float16: 3e-3, mx.bfloat16: 3e-2}[case.query]
