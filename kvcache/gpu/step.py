"""What attention of a few new tokens launches in each layer, but for the layer's own arrays.

Layers come one after the other and are mostly alike, so this is made once for a token, as are
the objects that it is found by: where tokens lie (`Bounds`) and who sees them (`Sight`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import mlx.core as mx

from kvcache.gpu.arguments import MACROS, Argument, float_bits, pack_arguments
from kvcache.gpu.families import Family, level_table
from kvcache.gpu.kernel import LEAST_SIZE, Call, Constant, Kernel, in_device_memory
from kvcache.gpu.segments import SegmentInputs, key_role, value_role
from kvcache.gpu.shape import TILE, CallShape, ceil_div
from kvcache.sight import Sight
from kvcache.snapshot import Bounds

_MERGERS = 8  # simdgroups that share the spans of a row
_NO_TURNS = mx.array([0.0] * LEAST_SIZE)  # of the type of those that are read
_UNENCODED = Kernel.load(
    "unencoded",
    inputs=(
        *("queries", "turns", "pinned_keys", "pinned_values"),
        *("hot_keys", "hot_values", "new_keys", "new_values", "args"),
    ),
    outputs=("sums", "stats"),
    headers=("packing.h", "softmax.h"),
    macros=MACROS,
)
_MERGE = Kernel.load(
    "merge",
    inputs=("cold_sums", "cold_stats", "unencoded_sums", "unencoded_stats", "words", "args"),
    outputs=("out",),
    headers=("packing.h", "softmax.h", "hadamard.h"),
    macros=MACROS,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class ColdKernel:
    """The kernel that reads blocks of two families, the same for all layers."""

    kernel: Kernel
    segments: SegmentInputs
    levels: mx.array


@lru_cache(maxsize=64)
def cold_kernel(keys: Family, values: Family) -> ColdKernel:
    """For blocks of these families."""
    inputs, last, outputs = ("queries", "words", "levels"), ("args",), ("sums", "stats")
    segments = SegmentInputs(
        roles=(key_role(keys), value_role(values)),
        others=len(inputs) + len(last) + len(outputs),
    )
    kernel = Kernel.load(
        "cold",
        inputs=(*inputs, *segments.names, *last),
        outputs=outputs,
        headers=("packing.h", "codecs.h", "softmax.h", "ring.h", "hadamard.h"),
        macros=(*MACROS, *segments.macros),
    )
    return ColdKernel(kernel=kernel, segments=segments, levels=level_table((keys, values)))


class ColdTask(NamedTuple):
    """Of a layer's blocks: how kernels read them, and the slots of their segments.

    segments: how many there are already. keys_rotated, values_rotated: whether they are.
    """

    kernel: ColdKernel
    segments: int
    slots: tuple[int, ...]
    keys_rotated: bool
    values_rotated: bool


class Task(NamedTuple):
    """All that the layers of a token have in common.

    queries: [B, Hq, L, D]. dtype: theirs. pinned, hot: shapes of buffers [B, Hkv, room, D], of
    held_dtype. sight, bounds: of a snapshot, found by what objects they are. cold: None where
    there are no blocks. threadgroups: that a launch should have.
    """

    queries: tuple[int, ...]
    dtype: mx.Dtype
    pinned: tuple[int, ...]
    hot: tuple[int, ...]
    held_dtype: mx.Dtype
    scale: float
    sight: Sight
    bounds: Bounds
    cold: ColdTask | None
    threadgroups: int


class Step(NamedTuple):
    """The launches, each of `numbers` alone: no cold one without blocks, several of many parts.

    turns: cosines and sines for the pinned tokens.
    """

    cold: Sequence[Call]
    unencoded: Call
    merge: Call
    turns: mx.array


@lru_cache(maxsize=16)
def step_of(task: Task) -> Step:
    """The launches of a layer. Raises CacheError for a D that the kernels do not take."""
    shape, bounds = CallShape.of(task.queries, task.hot[1]), task.bounds
    cold_spans = shape.spans(bounds.blocks, task.threadgroups)
    cold = _cold(task, shape, cold_spans)
    pinned_spans = _spans_of(bounds.pinned, task, shape) if bounds.pinned else 0
    spans = pinned_spans + _spans_of(bounds.hot + task.sight.new, task, shape)
    turns = _turns(task)
    return Step(
        cold=cold,
        unencoded=_unencoded(task, shape, spans, pinned_spans, turns),
        merge=_merge(task, shape, cold_spans * len(cold), spans),
        turns=turns.table,
    )


class _Turns(NamedTuple):
    """Cosines and sines for pinned tokens, of so many pairs of channels, so far apart."""

    table: mx.array
    pairs: int
    apart: int


def _turns(task: Task) -> _Turns:
    """None, pairs of channels, where no tokens are pinned or none was let go."""
    sight, rotation = task.sight, task.sight.rotation
    if rotation is None or not task.bounds.pinned or not any(sight.turns):
        return _Turns(_NO_TURNS, 0, 0)
    pairs = len(rotation.periods)
    apart = 1 if rotation.traditional else pairs
    return _Turns(in_device_memory(rotation.table(sight.turns)), pairs, apart)


def _spans_of(tokens: int, task: Task, shape: CallShape) -> int:
    return shape.spans(ceil_div(tokens, TILE), task.threadgroups)


def _cold(task: Task, shape: CallShape, spans: int) -> list[Call]:
    cold, bounds = task.cold, task.bounds
    if cold is None:
        return []
    constants: dict[str, Constant] = {
        "M": bounds.block,
        "QUERY": task.dtype,
        "ROTATED": cold.keys_rotated,
    }
    position = {Argument.COLD_POSITION: bounds.cold_position}
    return [
        _partial(task, shape, cold.kernel.kernel, spans, where | position, constants)
        for where in cold.kernel.segments.numbers(bounds, cold.segments, cold.slots)
    ]


def _unencoded(task: Task, shape: CallShape, spans: int, pinned_spans: int, turns: _Turns) -> Call:
    bounds = task.bounds
    numbers = {
        Argument.PINNED: bounds.pinned,
        Argument.PINNED_ROOM: task.pinned[2],
        Argument.PINNED_SPANS: pinned_spans,
        Argument.HOT: bounds.hot,
        Argument.HOT_START: bounds.hot_start,
        Argument.HOT_POSITION: bounds.hot_position,
        Argument.RING: task.hot[2],
        Argument.NEW: task.sight.new,
        Argument.NEW_POSITION: bounds.new_position,
        Argument.PAIRS: turns.pairs,
        Argument.APART: turns.apart,
    }
    constants: dict[str, Constant] = {"HOT": task.held_dtype, "QUERY": task.dtype}
    return _partial(task, shape, _UNENCODED, spans, numbers, constants)


def _partial(
    task: Task,
    shape: CallShape,
    kernel: Kernel,
    spans: int,
    numbers: Mapping[Argument, int],
    constants: Mapping[str, Constant],
) -> Call:
    """A launch that gives partial results, sums and stats, of each span."""
    threads = TILE * shape.simdgroups
    shared = {
        Argument.ROWS: shape.rows,
        Argument.QUERIES: shape.new,
        Argument.POSITION: task.sight.position,
        Argument.HEADS: shape.heads,
        Argument.KV_HEADS: shape.kv_heads,
        Argument.SPANS: spans,
        Argument.SCALE: float_bits(task.scale * math.log2(math.e)),
    }
    sizes = {
        **{"D": shape.dim, "ROWS": shape.tile_rows},
        **{"TEAM": shape.team, "TEAMS": shape.teams},
    }
    return Call(
        kernel=kernel,
        inputs=(pack_arguments({**shared, **numbers}, task.sight.lowest),),
        constants={**constants, **sizes},
        grid=(threads * shape.row_parts, shape.heads, spans),
        threadgroup=(threads, 1, 1),
        shapes=[(shape.heads, spans, shape.rows, last) for last in (shape.dim, 2)],
        dtypes=[mx.float32, mx.float32],
    )


def _merge(task: Task, shape: CallShape, cold_spans: int, unencoded_spans: int) -> Call:
    numbers = {
        Argument.ROWS: shape.rows,
        Argument.KV_HEADS: shape.kv_heads,
        Argument.COLD_SPANS: cold_spans,
        Argument.UNENCODED_SPANS: unencoded_spans,
    }
    threads = TILE * _MERGERS
    return Call(
        kernel=_MERGE,
        inputs=(pack_arguments(numbers),),
        constants={
            "D": shape.dim,
            "ROTATED": task.cold is not None and task.cold.values_rotated,
            "SIMDGROUPS": _MERGERS,
            "OUT": task.dtype,
        },
        grid=(threads, shape.heads * shape.rows, 1),
        threadgroup=(threads, 1, 1),
        shapes=[task.queries],
        dtypes=[task.dtype],
    )
