"""Attention of a few new tokens over all tiers: flash-decoding over spans of tokens.

One launch over the cold blocks, one over the unencoded tokens, each giving a
partial softmax for every span, and one that merges them. Rotations stay outside
the kernels: the queries are rotated once, the cold part of the output once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from kvcache.codecs.base import Codec
from kvcache.gpu.arguments import MACROS, Argument, float_bits, pack_arguments
from kvcache.gpu.families import family_of, level_table
from kvcache.gpu.kernel import Call, Constant, Kernel, Launcher, launch_on_device
from kvcache.gpu.tiers import ColdBlocks, DenseTokens, HotRing, TierArrays

MOST_NEW = 8  # new tokens that the kernels are meant for; more of them re-read the tiers
_ROWS = 8  # query rows that share one read of a token
_TILE = 32  # tokens that a simdgroup takes at a time
_THREADGROUPS = 512  # that keep any GPU busy
_MOST_BUFFERS = 31  # that a Metal kernel takes
_COLD_BUFFERS = 6  # of the cold kernel besides the parts: queries, lowest, levels, args, outputs
_SHARED_BYTES = 16 * 1024  # of threadgroup memory, for two groups at a time on every GPU
_SEGMENTS = 4

_DENSE = Kernel(
    body="dense",
    inputs=(
        *("queries", "sink_queries", "lowest", "args", "pinned_keys", "pinned_values"),
        *("hot_keys", "hot_values", "new_keys", "new_values"),
    ),
    outputs=("sums", "stats"),
    macros=MACROS,
)
_MERGE = Kernel(
    body="merge",
    inputs=("cold_sums", "cold_stats", "dense_sums", "dense_stats", "args"),
    outputs=("cold", "dense"),
    macros=MACROS,
)


@dataclass(frozen=True, kw_only=True)
class Partial:
    """Of each span: sums [B * Hkv, spans, rows, D] and stats [B * Hkv, spans, rows, 2]."""

    sums: mx.array
    stats: mx.array
    spans: int


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """What a call's queries and tiers have in common."""

    batch: int
    kv_heads: int
    group: int
    new: int
    dim: int

    @property
    def rows(self) -> int:
        return self.group * self.new

    @property
    def heads(self) -> int:
        return self.batch * self.kv_heads

    @property
    def row_tiles(self) -> int:
        return -(-self.rows // _ROWS)

    @property
    def tile_rows(self) -> int:
        return -(-self.rows // self.row_tiles)

    def spans(self, units: int, simdgroups: int) -> int:
        """How many ways to split units of work: enough to keep a GPU busy, none idle."""
        wanted = max(1, _THREADGROUPS // (self.heads * self.row_tiles))
        return max(1, min(wanted, -(-units // simdgroups)))


def cold_kernel(keys: Codec, values: Codec, dim: int) -> tuple[Kernel, int]:
    """The kernel that reads blocks of these codecs, and how many segments a launch of it takes."""
    families = family_of(keys, dim), family_of(values, dim)
    names = [
        f"{role}_{part}"
        for role, family in zip(("key", "value"), families, strict=True)
        for part in family.parts
    ]
    room = (_MOST_BUFFERS - _COLD_BUFFERS) // len(names)
    segments = min(_SEGMENTS, room)
    picks = ["PICK(" + name + ")" for name in names]
    split = len(families[0].parts)
    others = "".join(f"segment == {i} ? name##_{i} : " for i in range(segments - 1))
    macros: tuple[tuple[str, str | int], ...] = (
        *MACROS,
        ("PICK(name)", f"({others}name##_{segments - 1})"),
        ("KEYS", families[0].structure),
        ("KEY_PARTS", ", ".join(picks[:split])),
        ("VALUES", families[1].structure),
        ("VALUE_PARTS", ", ".join(picks[split:])),
    )
    inputs = [f"{name}_{i}" for i in range(segments) for name in names]
    kernel = Kernel(
        body="cold",
        inputs=("queries", "lowest", "levels", "args", *inputs),
        outputs=("sums", "stats"),
        macros=macros,
    )
    return kernel, segments


@dataclass(frozen=True, kw_only=True)
class TierDecoder:
    """Runs the kernels; `launch` may be another than the device's, for tests."""

    launch: Launcher = launch_on_device

    def attend(
        self,
        q: mx.array,
        q_sink: mx.array,
        tiers: TierArrays,
        *,
        lowest: mx.array,
        position: int,
        scale: float,
    ) -> mx.array:
        """Attend q [B, Hq, L, D] to the tiers; [B, Hq, L, D] in q's dtype.

        q_sink: the same queries as the pinned tokens see them. Query i is at
        `position` + i and sees the pinned tokens and every other from position
        lowest[i] (integers [L]) up to its own.
        """
        shape = _shape_of(q, tiers)
        lowest = lowest.astype(mx.int32)
        dense = self._dense(shape, q, q_sink, tiers, lowest, position, scale)
        cold = tiers.cold
        if cold is None or cold.blocks == 0:
            _, out = self._merge(shape, None, dense)
        else:
            rotated = cold.key_codec.rotate(_by_kv_head(q, shape))
            partial = self._cold(shape, rotated, cold, lowest, scale)
            coded, plain = self._merge(shape, partial, dense)
            out = cold.value_codec.unrotate(coded) + plain
        return out.reshape(q.shape).astype(q.dtype)

    def _cold(
        self,
        shape: _Shape,
        queries: mx.array,
        cold: ColdBlocks,
        lowest: mx.array,
        scale: float,
    ) -> Partial:
        kernel, room = cold_kernel(cold.key_codec, cold.value_codec, shape.dim)
        families = [family_of(c, shape.dim) for c in (cold.key_codec, cold.value_codec)]
        table = level_table(cold.key_codec, cold.value_codec)
        simdgroups = _simdgroups(shape)
        spans = shape.spans(cold.blocks, simdgroups)
        starts = [sum(cold.sizes[:i]) for i in range(len(cold.sizes) + 1)]
        found = []
        for at in range(0, len(cold.segments), room):
            segments = list(cold.segments[at : at + room])
            stop = starts[at + len(segments)]
            first = [starts[at + i] if i < len(segments) else stop for i in range(_SEGMENTS)]
            segments += [segments[0]] * (room - len(segments))
            numbers = {
                Argument.BLOCKS: cold.blocks,
                Argument.SLOTS: cold.slots,
                Argument.FIRST_SLOT: cold.first_slot,
                Argument.POSITION: cold.position,
                Argument.STOP: stop,
                **{Argument(Argument.START_0 + i): value for i, value in enumerate(first)},
            }
            arguments = _arguments(shape, spans, scale, numbers)
            parts = [
                held[part]
                for pair in segments
                for held, family in zip(pair, families, strict=True)
                for part in family.parts
            ]
            inputs = [queries, lowest, table, arguments, *parts]
            constants: dict[str, Constant] = {"M": cold.block}
            found.append(self._partial(kernel, shape, inputs, constants, spans, simdgroups))
        if len(found) == 1:
            return found[0]
        return Partial(
            sums=mx.concatenate([each.sums for each in found], axis=1),
            stats=mx.concatenate([each.stats for each in found], axis=1),
            spans=spans * len(found),
        )

    def _dense(
        self,
        shape: _Shape,
        q: mx.array,
        q_sink: mx.array,
        tiers: TierArrays,
        lowest: mx.array,
        position: int,
        scale: float,
    ) -> Partial:
        new = tiers.new
        pinned = tiers.pinned or DenseTokens(keys=new.keys, values=new.values, count=0)
        hot = tiers.hot or HotRing(
            keys=new.keys, values=new.values, start=0, count=0, position=position
        )
        simdgroups = _simdgroups(shape)
        pinned_spans = _ceil(pinned.count, _TILE * simdgroups)
        spans = pinned_spans + shape.spans(_ceil(hot.count + shape.new, _TILE), simdgroups)
        numbers = {
            Argument.POSITION: position,
            Argument.PINNED: pinned.count,
            Argument.PINNED_ROOM: pinned.keys.shape[2],
            Argument.PINNED_SPANS: pinned_spans,
            Argument.HOT: hot.count,
            Argument.HOT_START: hot.start,
            Argument.HOT_POSITION: hot.position,
            Argument.RING: hot.keys.shape[2],
        }
        dtype = new.keys.dtype
        inputs = [
            *(q, q_sink, lowest, _arguments(shape, spans, scale, numbers)),
            *(pinned.keys, pinned.values, hot.keys, hot.values, new.keys, new.values),
        ]
        constants: dict[str, Constant] = {"HOT": dtype, "QUERY": q.dtype}
        return self._partial(_DENSE, shape, inputs, constants, spans, simdgroups)

    def _partial(
        self,
        kernel: Kernel,
        shape: _Shape,
        inputs: Sequence[mx.array],
        constants: dict[str, Constant],
        spans: int,
        simdgroups: int,
    ) -> Partial:
        threads = 32 * simdgroups
        sums, stats = self.launch(
            Call(
                kernel=kernel,
                inputs=inputs,
                constants=constants
                | {"D": shape.dim, "ROWS": shape.tile_rows, "SIMDGROUPS": simdgroups},
                grid=(threads * shape.row_tiles, shape.heads, spans),
                threadgroup=(threads, 1, 1),
                shapes=[(shape.heads, spans, shape.rows, last) for last in (shape.dim, 2)],
                dtypes=[mx.float32, mx.float32],
            )
        )
        return Partial(sums=sums, stats=stats, spans=spans)

    def _merge(
        self, shape: _Shape, cold: Partial | None, dense: Partial
    ) -> tuple[mx.array, mx.array]:
        """The cold and the dense part of the output, each [B, Hkv, rows, D] float32."""
        there = cold or dense
        numbers = {
            Argument.ROWS: shape.rows,
            Argument.COLD_SPANS: cold.spans if cold else 0,
            Argument.DENSE_SPANS: dense.spans,
        }
        threads = 32 * _ceil(shape.dim, 32)
        size = (shape.batch, shape.kv_heads, shape.rows, shape.dim)
        coded, plain = self.launch(
            Call(
                kernel=_MERGE,
                inputs=[there.sums, there.stats, dense.sums, dense.stats, pack_arguments(numbers)],
                constants={"D": shape.dim},
                grid=(threads, shape.heads * shape.rows, 1),
                threadgroup=(threads, 1, 1),
                shapes=[size, size],
                dtypes=[mx.float32, mx.float32],
            )
        )
        return coded, plain


def _shape_of(q: mx.array, tiers: TierArrays) -> _Shape:
    batch, heads, new, dim = q.shape
    kv_heads = tiers.new.keys.shape[1]
    return _Shape(batch=batch, kv_heads=kv_heads, group=heads // kv_heads, new=new, dim=dim)


def _by_kv_head(q: mx.array, shape: _Shape) -> mx.array:
    return q.reshape(shape.batch, shape.kv_heads, shape.rows, shape.dim)


def _simdgroups(shape: _Shape) -> int:
    """As many as keep folded queries and weights within the threadgroup memory meant for them."""
    each = 4 * shape.tile_rows * (shape.dim + _TILE)
    return 4 if 4 * each <= _SHARED_BYTES // 2 else 2


def _arguments(shape: _Shape, spans: int, scale: float, numbers: dict[Argument, int]) -> mx.array:
    return pack_arguments(
        numbers
        | {
            Argument.ROWS: shape.rows,
            Argument.NEW: shape.new,
            Argument.HEADS: shape.heads,
            Argument.SPANS: spans,
            Argument.SCALE: float_bits(scale * math.log2(math.e)),
        }
    )


def _ceil(count: int, size: int) -> int:
    return -(-count // size)
