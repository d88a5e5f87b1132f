"""Attention of a few new tokens over all tiers: flash-decoding over spans of tokens.

Four launches: the queries into the keys' basis, the cold blocks, the unencoded
tokens, and the merge of the partial softmax that each span gave, which takes the
cold part of the output back from the values' basis.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx

from kvcache.codecs.base import Codec
from kvcache.gpu.arguments import MACROS, Argument, float_bits, pack_arguments
from kvcache.gpu.families import Family, family_of, level_table
from kvcache.gpu.kernel import Call, Constant, Kernel, Launcher, launch_on_device
from kvcache.gpu.segments import SegmentInputs, key_role, value_role
from kvcache.gpu.shape import THREADGROUPS, TILE, CallShape, ceil_div
from kvcache.sight import Sight
from kvcache.snapshot import Snapshot, Tokens

MOST_NEW = 8  # new tokens that the kernels are meant for: each 16 rows re-read the tiers

_ROTATE = Kernel.load(
    "rotate",
    inputs=("queries", "signs", "matrix", "args"),
    outputs=("rotated",),
    macros=MACROS,
)
_UNENCODED = Kernel.load(
    "dense",
    inputs=(
        *("queries", "sink_queries", "lowest", "args", "pinned_keys", "pinned_values"),
        *("hot_keys", "hot_values", "new_keys", "new_values"),
    ),
    outputs=("sums", "stats"),
    macros=MACROS,
)
_MERGE = Kernel.load(
    "merge",
    inputs=("cold_sums", "cold_stats", "dense_sums", "dense_stats", "signs", "matrix", "args"),
    outputs=("out",),
    macros=MACROS,
)


@dataclass(frozen=True, kw_only=True)
class _ColdKernel:
    kernel: Kernel
    segments: SegmentInputs
    levels: mx.array


@lru_cache(maxsize=64)
def _cold_kernel(keys: Family, values: Family) -> _ColdKernel:
    """The kernel that reads blocks of these codecs, the same for all layers."""
    inputs = ("queries", "lowest", "levels", "args")
    outputs = ("sums", "stats")
    segments = SegmentInputs(
        roles=(key_role(keys), value_role(values)), others=len(inputs) + len(outputs)
    )
    kernel = Kernel.load(
        "cold",
        inputs=(*inputs, *segments.names),
        outputs=outputs,
        macros=(*MACROS, *segments.macros),
    )
    return _ColdKernel(kernel=kernel, segments=segments, levels=level_table((keys, values)))


@dataclass(frozen=True, kw_only=True)
class _Spans:
    """Of each span: sums [B * Hkv, spans, rows, D] and stats [B * Hkv, spans, rows, 2]."""

    sums: mx.array
    stats: mx.array

    @property
    def spans(self) -> int:
        """Spans of tokens, whatever their tier."""
        return self.sums.shape[1]


@dataclass(frozen=True, kw_only=True)
class TierDecoder:
    """Runs the kernels.

    launch: may be another than the device's, for tests.
    threadgroups: how many a launch should have at least where there is work for them.
    """

    launch: Launcher = launch_on_device
    threadgroups: int = THREADGROUPS

    def attend(
        self, q: mx.array, q_sink: mx.array, held: Snapshot, sight: Sight, *, scale: float
    ) -> mx.array:
        """Attend q [B, Hq, L, D] to all that is held and new; [B, Hq, L, D] in q's dtype.

        q_sink: the same queries as the pinned tokens see them.
        sight: one that suits kernels. Raises CacheError for codecs that no kernel reads.
        """
        shape = CallShape.of(q, held.kv_heads)
        lowest = mx.array(sight.lowest, mx.int32)
        call = _Numbers(shape=shape, position=sight.position, scale=scale)
        unencoded = self._unencoded(call, q, q_sink, held, lowest)
        encoded = self._encoded(call, q, held, lowest) if held.blocks else None
        values = held.codecs[1] if held.blocks else None
        return self._merge(shape, encoded, unencoded, values, q.dtype).reshape(q.shape)

    def _rotate(self, shape: CallShape, q: mx.array, codec: Codec) -> mx.array:
        """The queries [B, Hkv, rows, D] in the codec's basis; as they are if it has none."""
        basis = codec.basis(shape.kv_heads, shape.dim)
        if basis is None:
            return q
        numbers = {Argument.ROWS: shape.rows, Argument.KV_HEADS: shape.kv_heads}
        threads = _threads_per_row(shape)
        (rotated,) = self.launch(
            Call(
                kernel=_ROTATE,
                inputs=[q, basis.signs, basis.matrix, pack_arguments(numbers)],
                constants={"D": shape.dim, "QUERY": q.dtype},
                grid=(threads, shape.heads * shape.rows, 1),
                threadgroup=(threads, 1, 1),
                shapes=[(shape.batch, shape.kv_heads, shape.rows, shape.dim)],
                dtypes=[mx.float32],
            )
        )
        return rotated

    def _encoded(self, call: "_Numbers", q: mx.array, held: Snapshot, lowest: mx.array) -> _Spans:
        shape = call.shape
        made = _cold_kernel(*(family_of(codec, shape.dim) for codec in held.codecs))
        queries = self._rotate(shape, q, held.codecs[0])
        spans = shape.spans(held.blocks, self.threadgroups)
        position = {Argument.COLD_POSITION: held.cold_position}
        constants: dict[str, Constant] = {"M": held.block, "QUERY": queries.dtype}
        found = [
            self._partial(
                made.kernel,
                shape,
                [queries, lowest, made.levels, call.pack(spans, where | position), *parts],
                constants,
                spans,
            )
            for parts, where in made.segments.launches(held)
        ]
        if len(found) == 1:
            return found[0]
        return _Spans(
            sums=mx.concatenate([each.sums for each in found], axis=1),
            stats=mx.concatenate([each.stats for each in found], axis=1),
        )

    def _unencoded(
        self, call: "_Numbers", q: mx.array, q_sink: mx.array, held: Snapshot, lowest: mx.array
    ) -> _Spans:
        shape = call.shape
        none = _no_tokens(shape, held, q)
        pinned, hot, new = (tier or none for tier in (held.pinned, held.hot, held.new))
        pinned_tiles = ceil_div(held.pinned_count, TILE)
        pinned_spans = shape.spans(pinned_tiles, self.threadgroups) if pinned_tiles else 0
        tiles = ceil_div(held.hot_count + held.new_count, TILE)
        spans = pinned_spans + shape.spans(tiles, self.threadgroups)
        numbers = {
            Argument.PINNED: held.pinned_count,
            Argument.PINNED_ROOM: pinned.length,
            Argument.PINNED_SPANS: pinned_spans,
            Argument.HOT: held.hot_count,
            Argument.HOT_START: held.hot_start,
            Argument.HOT_POSITION: held.hot_position,
            Argument.RING: hot.length,
            Argument.NEW: held.new_count,
            Argument.NEW_POSITION: held.new_position,
        }
        inputs = [
            *(q, q_sink, lowest, call.pack(spans, numbers)),
            *(*pinned, *hot, *new),
        ]
        constants: dict[str, Constant] = {"HOT": none.keys.dtype, "QUERY": q.dtype}
        return self._partial(_UNENCODED, shape, inputs, constants, spans)

    def _partial(
        self,
        kernel: Kernel,
        shape: CallShape,
        inputs: Sequence[mx.array],
        constants: dict[str, Constant],
        spans: int,
    ) -> _Spans:
        threads = TILE * shape.simdgroups
        sizes = {
            **{"D": shape.dim, "ROWS": shape.tile_rows},
            **{"TEAM": shape.team, "TEAMS": shape.teams},
        }
        sums, stats = self.launch(
            Call(
                kernel=kernel,
                inputs=inputs,
                constants=constants | sizes,
                grid=(threads * shape.row_parts, shape.heads, spans),
                threadgroup=(threads, 1, 1),
                shapes=[(shape.heads, spans, shape.rows, last) for last in (shape.dim, 2)],
                dtypes=[mx.float32, mx.float32],
            )
        )
        return _Spans(sums=sums, stats=stats)

    def _merge(
        self,
        shape: CallShape,
        encoded: _Spans | None,
        unencoded: _Spans,
        values: Codec | None,
        dtype: mx.Dtype,
    ) -> mx.array:
        basis = values.basis(shape.kv_heads, shape.dim) if values else None
        coded = encoded or unencoded  # not read where there is no block
        numbers = {
            Argument.ROWS: shape.rows,
            Argument.KV_HEADS: shape.kv_heads,
            Argument.COLD_SPANS: encoded.spans if encoded else 0,
            Argument.DENSE_SPANS: unencoded.spans,
        }
        back = [basis.signs, basis.transposed] if basis else [unencoded.stats, unencoded.stats]
        threads = _threads_per_row(shape)
        (out,) = self.launch(
            Call(
                kernel=_MERGE,
                inputs=[
                    *(coded.sums, coded.stats, unencoded.sums, unencoded.stats),
                    *(*back, pack_arguments(numbers)),
                ],
                constants={"D": shape.dim, "ROTATED": basis is not None, "OUT": dtype},
                grid=(threads, shape.heads * shape.rows, 1),
                threadgroup=(threads, 1, 1),
                shapes=[(shape.batch, shape.kv_heads, shape.rows, shape.dim)],
                dtypes=[dtype],
            )
        )
        return out


@dataclass(frozen=True, kw_only=True)
class _Numbers:
    """What every launch of a call is told."""

    shape: CallShape
    position: int
    scale: float

    def pack(self, spans: int, numbers: dict[Argument, int]) -> mx.array:
        shared = {
            Argument.ROWS: self.shape.rows,
            Argument.QUERIES: self.shape.new,
            Argument.POSITION: self.position,
            Argument.HEADS: self.shape.heads,
            Argument.SPANS: spans,
            Argument.SCALE: float_bits(self.scale * math.log2(math.e)),
        }
        return pack_arguments(shared | numbers)


def _no_tokens(shape: CallShape, held: Snapshot, q: mx.array) -> Tokens[mx.array]:
    """Some tokens of the held ones' dtype, not read, where a tier holds nothing."""
    for tier in (held.new, held.hot, held.pinned):
        if tier is not None:
            return tier
    dtype = mx.bfloat16 if q.dtype == mx.bfloat16 else mx.float16
    nothing = mx.zeros((shape.batch, shape.kv_heads, 1, shape.dim), dtype)
    return Tokens(nothing, nothing)


def _threads_per_row(shape: CallShape) -> int:
    return TILE * ceil_div(shape.dim, TILE)
