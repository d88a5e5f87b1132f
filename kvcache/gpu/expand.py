"""Cold blocks decoded by a kernel into one array, some KV heads at a time."""

from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx

from kvcache.gpu.arguments import MACROS, Argument, pack_arguments
from kvcache.gpu.families import Family, family_of, level_table
from kvcache.gpu.kernel import Call, Kernel, Launcher
from kvcache.gpu.segments import SegmentInputs, value_role
from kvcache.gpu.shape import TILE, WIDEST_DIM, ceil_div
from kvcache.snapshot import Snapshot

_SIMDGROUPS = 4  # of a threadgroup; each takes a block


@dataclass(frozen=True, kw_only=True)
class Heads:
    """KV heads [first, first + count)."""

    first: int
    count: int

    @property
    def slice(self) -> slice:
        """Of an axis of all KV heads."""
        return slice(self.first, self.first + self.count)


@dataclass(frozen=True, kw_only=True)
class _ExpandKernel:
    kernel: Kernel
    segments: SegmentInputs
    levels: mx.array


def expand(
    launch: Launcher, held: Snapshot, index: int, heads: Heads, dtype: mx.Dtype, *, room: int
) -> mx.array:
    """The keys (index 0) or values (1) of the blocks in order, in the codec's basis.

    [B, heads.count, room, D] of `dtype`; what follows the blocks' tokens is not set.
    Raises CacheError for a codec that no kernel reads.
    """
    words = next(iter(held.segments[0][index].values()))
    batch, kv_heads = words.shape[1:3]
    made = _expand_kernel(family_of(held.codecs[index], held.dim), index)
    (parts,) = made.segments.inputs(held)
    (where,) = made.segments.numbers(
        len(held.segments), held.slots, first_slot=held.first_slot, blocks=held.blocks
    )
    numbers = where | {
        Argument.HEADS: batch * kv_heads,
        Argument.KV_HEADS: kv_heads,
        Argument.FIRST_HEAD: heads.first,
        Argument.HEADS_TAKEN: heads.count,
        Argument.ROOM: room,
    }
    # Twice the channels of each token take twice the memory.
    simdgroups = _SIMDGROUPS if held.dim <= WIDEST_DIM else _SIMDGROUPS // 2
    sizes = {"D": held.dim, "M": held.block, "SIMDGROUPS": simdgroups}
    threads = TILE * simdgroups
    (out,) = launch(
        Call(
            kernel=made.kernel,
            inputs=[made.levels, pack_arguments(numbers), *parts],
            constants={**sizes, "OUT": dtype},
            grid=(threads * ceil_div(held.blocks, simdgroups), batch * heads.count, 1),
            threadgroup=(threads, 1, 1),
            shapes=[(batch, heads.count, room, held.dim)],
            dtypes=[dtype],
        )
    )
    return out


@lru_cache(maxsize=64)
def _expand_kernel(family: Family, index: int) -> _ExpandKernel:
    inputs, outputs = ("levels", "args"), ("out",)
    segments = SegmentInputs(
        roles=(value_role(family, index=index),), others=len(inputs) + len(outputs)
    )
    kernel = Kernel.load(
        "expand",
        inputs=(*inputs, *segments.names),
        outputs=outputs,
        headers=("packing.h", "codecs.h", "ring.h"),
        macros=(*MACROS, *segments.macros),
    )
    return _ExpandKernel(kernel=kernel, segments=segments, levels=level_table((family,)))
