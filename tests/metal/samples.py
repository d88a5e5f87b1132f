"""Tiers with something in them, and the attention over them as its definition reads."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from kvcache import codec
from kvcache.codecs.base import Encoded, Parts
from kvcache.gpu.tier_arrays import ColdBlocks, DenseTokens, HotRing, TierArrays
from tests.kvcache.oracle import attention

Array = npt.NDArray[np.float64]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Case:
    """The sizes of a call.

    Positions begin after `evicted`, so that they differ from indices. Queries are float32 unless
    told: then the output is not rounded, and errors of the kernels show. one_query: pinned tokens
    are met by the same queries as all others. in_tiers: queries of tokens that are in the tiers
    already, so that there are no new ones and later tokens must not be seen. threadgroups: the
    decoder's; with few of them each takes several blocks. sharpness: of scores; with 50 their
    powers of two are out of float32's range.
    """

    keys: str = "hkivi5"
    values: str = "turbo3u"
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
    dtype: mx.Dtype = mx.float16
    query: mx.Dtype = mx.float32
    one_query: bool = False
    in_tiers: int = 0
    threadgroups: int = 512
    sharpness: float = 1.3
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Arguments of a call and what it must give, [B, Hq, L, D] in float64."""

    q: mx.array
    q_sink: mx.array
    tiers: TierArrays
    lowest: mx.array
    position: int
    scale: float
    expected: Array


def make(case: Case) -> Sample:
    """Random tiers of a case."""
    random = np.random.default_rng(case.seed)
    size = case.batch, case.kv_heads

    def tokens(count: int) -> mx.array:
        drawn = random.normal(size=(*size, count, case.dim)) + random.normal(size=case.dim)
        return mx.array(drawn.astype(np.float32)).astype(case.dtype)

    heads, queries = case.kv_heads * case.group, case.in_tiers or case.new
    q, q_sink = (
        mx.array(random.normal(size=(case.batch, heads, queries, case.dim)).astype(np.float32))
        for _ in range(2)
    )
    q = q.astype(case.query)
    q_sink = q if case.one_query else q_sink.astype(case.query)
    position = case.evicted + case.pinned + case.blocks * case.block + case.hot
    first = case.pinned + case.evicted
    tiers = TierArrays(
        new=None
        if case.in_tiers
        else DenseTokens(keys=tokens(case.new), values=tokens(case.new), count=case.new),
        pinned=DenseTokens(
            keys=tokens(case.pinned + 3), values=tokens(case.pinned + 3), count=case.pinned
        )
        if case.pinned
        else None,
        hot=HotRing(
            keys=tokens(case.ring),
            values=tokens(case.ring),
            start=case.hot_start,
            count=case.hot,
            position=position - case.hot,
        )
        if case.hot
        else None,
        cold=_cold(case, random, first) if case.blocks else None,
    )
    position -= case.in_tiers
    lowest = [min(first + case.window_step * i, position + i) for i in range(queries)]
    scale = case.sharpness / sqrt(case.dim)
    return Sample(
        q=q,
        q_sink=q_sink,
        tiers=tiers,
        lowest=mx.array(lowest),
        position=position,
        scale=scale,
        expected=_expected(q, q_sink, tiers, lowest, position, scale),
    )


def _cold(case: Case, random: np.random.Generator, position: int) -> ColdBlocks:
    codecs = codec(case.keys, seed=3), codec(case.values, seed=3)
    size = case.batch, case.kv_heads, case.block, case.dim
    segments: list[tuple[Parts, Parts]] = []
    for count in case.segments:
        pair = []
        for each in codecs:
            drawn = random.normal(size=(count, *size)) + random.normal(size=case.dim)
            slots = [each.encode(mx.array(block.astype(np.float32))).parts for block in drawn]
            pair.append({name: mx.stack([slot[name] for slot in slots]) for name in slots[0]})
        segments.append((pair[0], pair[1]))
    return ColdBlocks(
        key_codec=codecs[0],
        value_codec=codecs[1],
        segments=segments,
        first_slot=case.first_slot,
        blocks=case.blocks,
        block=case.block,
        dim=case.dim,
        slots=case.slots,
        position=position,
    )


def _expected(
    q: mx.array,
    q_sink: mx.array,
    tiers: TierArrays,
    lowest: list[int],
    position: int,
    scale: float,
) -> Array:
    """Attention of each query to all it sees, one softmax over every tier."""
    keys, values, positions = (
        list(each) for each in zip(*_pieces(tiers, position, q.shape[3]), strict=True)
    )
    k, v, at = np.concatenate(keys, 2), np.concatenate(values, 2), np.concatenate(positions)
    out = np.zeros(q.shape)
    for i in range(q.shape[2]):
        # The pinned tokens meet the second query: append it as channels of its own.
        both = np.concatenate([_wide(q[:, :, i : i + 1]), _wide(q_sink[:, :, i : i + 1])], 3)
        is_pinned = at < (tiers.pinned.count if tiers.pinned else 0)
        apart = is_pinned[:, None]
        split = np.concatenate([np.where(apart, 0, k), np.where(apart, k, 0)], 3)
        seen = (is_pinned | (at >= lowest[i])) & (at <= position + i)
        visible = np.broadcast_to(seen, (q.shape[0], 1, len(at)))
        padded = np.concatenate([v, np.zeros_like(v)], 3)
        out[:, :, i : i + 1] = attention(both, split, padded, scale, visible)[..., : q.shape[3]]
    return out


def _pieces(tiers: TierArrays, position: int, dim: int) -> Iterator[tuple[Array, Array, Positions]]:
    """Keys, values and positions of each tier."""
    if pinned := tiers.pinned:
        keys, values = _wide(pinned.keys), _wide(pinned.values)
        yield keys[:, :, : pinned.count], values[:, :, : pinned.count], np.arange(pinned.count)
    if cold := tiers.cold:
        for i in range(cold.blocks):
            parts = _slot(cold, (cold.first_slot + i) % cold.slots)
            keys, values = (
                _wide(each.decode(Encoded(parts=part, dim=dim)))
                for each, part in zip((cold.key_codec, cold.value_codec), parts, strict=True)
            )
            yield keys, values, cold.position + i * cold.block + np.arange(cold.block)
    if hot := tiers.hot:
        order = (hot.start + np.arange(hot.count)) % hot.keys.shape[2]
        keys, values = _wide(hot.keys), _wide(hot.values)
        yield keys[:, :, order], values[:, :, order], hot.position + np.arange(hot.count)
    if new := tiers.new:
        yield _wide(new.keys), _wide(new.values), position + np.arange(new.count)


def _slot(cold: ColdBlocks, slot: int) -> tuple[Parts, Parts]:
    for pair, size in zip(cold.segments, cold.sizes, strict=True):
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
