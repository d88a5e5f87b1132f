"""What attention of a few new tokens launches in each layer, but for the layer's own arrays.

Layers come one after the other and are mostly alike, so this is made once for a token.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import mlx.core as mx

from kvcache.gpu.arguments import MACROS, Argument, float_bits, pack_arguments
from kvcache.gpu.families import Family, level_table
from kvcache.gpu.kernel import Call, Constant, Kernel, Size
from kvcache.gpu.segments import SegmentInputs, key_role, value_role
from kvcache.gpu.shape import TILE, CallShape, ceil_div

_MERGERS = 8  # simdgroups that share the spans of a row
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


class Task(NamedTuple):
    """All that the layers of a token have in common.

    queries: [B, Hq, L, D]. dtype: theirs. held_dtype: of unencoded tokens. position,
    lowest: what queries see, as their sight has it. pairs, apart: of channels that turn for
    pinned tokens, and from one channel of a pair to the other.
    evicted to block: of the snapshot; rooms are the lengths of buffers.
    cold: what reads the blocks, if there are any. keys_rotated, values_rotated: theirs.
    threadgroups: that a launch should have.
    """

    queries: tuple[int, ...]
    dtype: mx.Dtype
    held_dtype: mx.Dtype
    kv_heads: int
    scale: float
    position: int
    lowest: tuple[int, ...]
    pairs: int
    apart: int
    evicted: int
    pinned: int
    pinned_room: int
    hot: int
    hot_start: int
    hot_room: int
    new: int
    segments: int
    slots: tuple[int, ...]
    first_slot: int
    blocks: int
    block: int
    cold: ColdKernel | None
    keys_rotated: bool
    values_rotated: bool
    threadgroups: int

    @property
    def shape(self) -> CallShape:
        """B, Hkv, G, L and D."""
        return CallShape.of(self.queries, self.kv_heads)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A call but for its inputs, of which `numbers` is the last."""

    kernel: Kernel
    numbers: mx.array
    constants: Mapping[str, Constant]
    grid: Size
    threadgroup: Size
    shapes: Sequence[tuple[int, ...]]
    dtypes: Sequence[mx.Dtype]

    def of(self, *inputs: mx.array) -> Call:
        """The call."""
        return Call(
            kernel=self.kernel,
            inputs=(*inputs, self.numbers),
            constants=self.constants,
            grid=self.grid,
            threadgroup=self.threadgroup,
            shapes=self.shapes,
            dtypes=self.dtypes,
        )


class Step(NamedTuple):
    """The launches: no cold one without blocks, and several if a codec has many parts."""

    cold: Sequence[Launch]
    unencoded: Launch
    merge: Launch


@lru_cache(maxsize=16)
def step_of(task: Task) -> Step:
    """The launches of a layer. Raises CacheError for a D that the kernels do not take."""
    shape = task.shape
    cold_spans = shape.spans(task.blocks, task.threadgroups)
    cold = _cold(task, shape, cold_spans)
    pinned_spans = _spans_of(task.pinned, task) if task.pinned else 0
    spans = pinned_spans + _spans_of(task.hot + task.new, task)
    return Step(
        cold=cold,
        unencoded=_unencoded(task, shape, spans, pinned_spans),
        merge=_merge(task, shape, cold_spans * len(cold), spans),
    )


def _spans_of(tokens: int, task: Task) -> int:
    return task.shape.spans(ceil_div(tokens, TILE), task.threadgroups)


def _cold(task: Task, shape: CallShape, spans: int) -> list[Launch]:
    if task.cold is None:
        return []
    constants: dict[str, Constant] = {
        "M": task.block,
        "QUERY": task.dtype,
        "ROTATED": task.keys_rotated,
    }
    position = {Argument.COLD_POSITION: task.pinned + task.evicted}
    return [
        _partial(task, shape, task.cold.kernel, spans, where | position, constants)
        for where in task.cold.segments.numbers(
            task.segments, task.slots, first_slot=task.first_slot, blocks=task.blocks
        )
    ]


def _unencoded(task: Task, shape: CallShape, spans: int, pinned_spans: int) -> Launch:
    hot_position = task.pinned + task.evicted + task.blocks * task.block
    numbers = {
        Argument.PINNED: task.pinned,
        Argument.PINNED_ROOM: task.pinned_room,
        Argument.PINNED_SPANS: pinned_spans,
        Argument.HOT: task.hot,
        Argument.HOT_START: task.hot_start,
        Argument.HOT_POSITION: hot_position,
        Argument.RING: task.hot_room,
        Argument.NEW: task.new,
        Argument.NEW_POSITION: hot_position + task.hot,
        Argument.PAIRS: task.pairs,
        Argument.APART: task.apart,
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
) -> Launch:
    """A launch that gives partial results, sums and stats, of each span."""
    threads = TILE * shape.simdgroups
    shared = {
        Argument.ROWS: shape.rows,
        Argument.QUERIES: shape.new,
        Argument.POSITION: task.position,
        Argument.HEADS: shape.heads,
        Argument.KV_HEADS: shape.kv_heads,
        Argument.SPANS: spans,
        Argument.SCALE: float_bits(task.scale * math.log2(math.e)),
    }
    sizes = {
        **{"D": shape.dim, "ROWS": shape.tile_rows},
        **{"TEAM": shape.team, "TEAMS": shape.teams},
    }
    return Launch(
        kernel=kernel,
        numbers=pack_arguments({**shared, **numbers}, task.lowest),
        constants={**constants, **sizes},
        grid=(threads * shape.row_parts, shape.heads, spans),
        threadgroup=(threads, 1, 1),
        shapes=[(shape.heads, spans, shape.rows, last) for last in (shape.dim, 2)],
        dtypes=[mx.float32, mx.float32],
    )


def _merge(task: Task, shape: CallShape, cold_spans: int, unencoded_spans: int) -> Launch:
    numbers = {
        Argument.ROWS: shape.rows,
        Argument.KV_HEADS: shape.kv_heads,
        Argument.COLD_SPANS: cold_spans,
        Argument.UNENCODED_SPANS: unencoded_spans,
    }
    threads = TILE * _MERGERS
    return Launch(
        kernel=_MERGE,
        numbers=pack_arguments(numbers),
        constants={
            "D": shape.dim,
            "ROTATED": task.values_rotated,
            "SIMDGROUPS": _MERGERS,
            "OUT": task.dtype,
        },
        grid=(threads, shape.heads * shape.rows, 1),
        threadgroup=(threads, 1, 1),
        shapes=[task.queries],
        dtypes=[task.dtype],
    )
