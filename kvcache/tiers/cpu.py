"""A layer's tiers in CPU memory, attended by the CPU kernels.

What the kernels do not take (a mask array, an odd head dimension) is attended in
plain MLX instead, and blocks of a codec that they do not read are decoded by MLX.
"""

from dataclasses import replace

import mlx.core as mx
import numpy as np

from kvcache.checks import check_finite
from kvcache.codecs.base import Codec, Encoded
from kvcache.codecs.feedback import LayerMetric
from kvcache.codecs.unencoded import UnencodedCodec
from kvcache.config import HotDtype
from kvcache.native import structs
from kvcache.native.library import library
from kvcache.native.structs import HEAD_DIM_STEP, Array, Floats
from kvcache.sight import Sight
from kvcache.snapshot import ColdBlocks, Snapshot, Tokens, joined
from kvcache.tiers.cold_ring import ColdRing
from kvcache.tiers.cpu_blocks import CpuBlocks
from kvcache.tiers.cpu_ring import CpuRing, CpuTokens, from_mlx, to_mlx
from kvcache.tiers.cpu_step import CpuStep, Writes
from kvcache.tiers.cpu_unencoded import CpuUnencodedBlocks
from kvcache.tiers.ledger import Ledger
from kvcache.tiers.memory import Tiers
from kvcache.tiers.plan import CachePlan, LayerPlan

Shape = tuple[int, int, int]
Cold = CpuBlocks | CpuUnencodedBlocks | ColdRing


class CpuTiers(Tiers[Array]):
    """Written in place."""

    def __init__(self, plan: LayerPlan, metric: LayerMetric | None = None) -> None:
        self.sizes = plan.sizes
        self._plan, self._dtype = plan, plan.hot_dtype
        # Now, while the metric's file is surely there, and not amid an answer.
        self._codecs = plan.codecs_in(metric)
        # Allocated with the first tokens, whose shape they need.
        self._rings: tuple[CpuRing, CpuRing] | None = None  # pinned, hot
        self._cold: Cold | None = None
        self._memory = structs.TierMemory()

    def prepare(self, k: mx.array, v: mx.array) -> CpuTokens:
        if self._plan.check_finite:
            check_finite(k, v, self._dtype, on_cpu=True)
        return from_mlx(Tokens(k, v), self._dtype)

    # -- attention --

    def attend(
        self, q: mx.array, ledger: Ledger, new: CpuTokens | None, sight: Sight, scale: float
    ) -> mx.array:
        step = _step(self._shape(new), sight, ledger, self._plan)
        if not step.is_taken:
            return super().attend(q, ledger, new, sight, scale)
        self._made(step.shape)
        memory = self._memory
        if decoded := self._decoded(ledger):
            memory = structs.TierMemory(memory.pinned, memory.hot, decoded.struct)
        queries: Floats = np.ascontiguousarray(q.astype(mx.float32))
        out = library().attend_tiers(
            queries, step.struct(heads=q.shape[1], scale=scale), memory, new
        )
        return mx.array(out).astype(q.dtype)

    def is_reference(self, dim: int) -> bool:
        return dim % HEAD_DIM_STEP != 0

    def snapshot(self, ledger: Ledger, new: CpuTokens | None = None) -> Snapshot:
        held = self._cold_snapshot(ledger)
        if new is not None:
            held = held._replace(new=to_mlx(new, self._dtype))
        if self._rings is None:
            return held
        pinned, hot = self._rings
        return held._replace(
            pinned=to_mlx(pinned.read(0, ledger.pinned), self._dtype),
            hot=to_mlx(hot.read(ledger.hot_number, ledger.hot), self._dtype),
        )

    def _cold_snapshot(self, ledger: Ledger) -> Snapshot:
        """Of the cold blocks alone."""
        bounds, cold = replace(ledger.bounds, hot_start=0), self._cold
        if isinstance(cold, ColdRing):
            return Snapshot(bounds, cold.held)
        dim = self._rings[0].shape[2] if self._rings else 0
        none = ColdBlocks(codecs=self._plan.codecs, dim=dim)
        if cold is None or not bounds.blocks:
            return Snapshot(bounds, none)
        blocks = replace(
            none, segments=(cold.read(ledger.first, ledger.end),), slots=(bounds.blocks,)
        )
        return Snapshot(replace(bounds, first_slot=0), blocks)

    def decoded(self, ledger: Ledger, dtype: mx.Dtype) -> Tokens[mx.array]:
        cold = self._cold
        if not isinstance(cold, CpuBlocks) or not ledger.cold:
            return super().decoded(ledger, dtype)
        # By the kernels, which are quicker at it than MLX.
        encoded = Tokens(
            *(mx.array(x).astype(dtype) for x in cold.decoded(ledger.first, ledger.end))
        )
        unencoded = self.snapshot(replace(ledger, first=ledger.end)).unencoded()
        parts = [tokens for _, tokens in unencoded]
        return joined([*parts[: bool(ledger.pinned)], encoded, *parts[bool(ledger.pinned) :]])

    def _decoded(self, ledger: Ledger) -> CpuRing | None:
        """The cold blocks that kernels do not read, in a ring of tokens; None: there are none."""
        if not isinstance(self._cold, ColdRing) or not ledger.cold:
            return None
        tokens = from_mlx(self._cold_snapshot(ledger).decoded(mx.float32), HotDtype.F32)
        ring = CpuRing(ledger.cold, _shape(tokens), HotDtype.F32)
        ring.write(ledger.first * self.sizes.block, tokens)
        return ring

    def _shape(self, new: CpuTokens | None) -> Shape:
        if new is not None:
            return _shape(new)
        assert self._rings is not None, "attended before the first token"
        return self._rings[0].shape

    # -- memory --

    def read_hot(self, number: int, count: int) -> CpuTokens:
        assert self._rings is not None, "read before the first write"
        return self._rings[1].read(number, count)

    def write_pinned(self, position: int, tokens: CpuTokens) -> None:
        if self._made(_shape(tokens))[0].write(position, tokens):
            self._tell()

    def write_hot(self, number: int, tokens: CpuTokens) -> None:
        if self._made(_shape(tokens))[1].write(number, tokens):
            self._tell()

    def write_cold(self, number: int, tokens: CpuTokens) -> None:
        cold = self._made_cold(_shape(tokens))
        if isinstance(cold, ColdRing):
            cold.write(number, to_mlx(tokens, self._dtype))
        else:
            cold.write(number, tokens)
            self._tell()

    def put_cold(self, number: int, keys: Encoded, values: Encoded) -> None:
        _, batch, heads = next(iter(keys.parts.values())).shape[:3]
        self._made_cold((batch, heads, keys.dim)).put(number, keys, values)

    def pending(self) -> list[mx.array]:
        return self._cold.pending() if isinstance(self._cold, ColdRing) else []

    @property
    def allocated_tokens(self) -> int:
        return sum(ring.allocated for ring in self._rings or ())

    @property
    def allocated_blocks(self) -> int:
        return 0 if self._cold is None else self._cold.allocated

    def struct(self, shape: Shape) -> structs.TierMemory | None:
        """All of it as the kernels take it, for good; None where they do not read a codec."""
        return None if isinstance(self._made_cold(shape), ColdRing) else self._memory

    def reserve(self, writes: Writes) -> None:
        """Make room for what a kernel will write, once the memory is made."""
        assert self._rings is not None, "reserved before the memory is made"
        pinned, hot = self._rings
        moved = hot.reserve(writes.hot.start, writes.hot.stop)
        if writes.pinned is not None:
            moved |= pinned.reserve(writes.pinned.start, writes.pinned.stop)
        if writes.cold is not None and isinstance(self._cold, CpuBlocks | CpuUnencodedBlocks):
            self._cold.reserve(writes.cold.start, writes.cold.stop)
            moved = True
        if moved:
            self._tell()

    def share_with(self, other: Tiers[Array]) -> None:
        assert isinstance(other, CpuTiers), "tiers of another kind"
        if self._rings is None:
            return
        pinned, hot = self._rings
        other._rings = pinned.shared(), hot.shared()
        other._cold = self._cold.shared() if self._cold is not None else None
        other._tell()

    def places(self, *, token: int, block: int) -> dict[int, int]:
        found = {ring.place: ring.allocated * token for ring in self._rings or ()}
        if isinstance(self._cold, CpuBlocks):
            return found | dict.fromkeys(self._cold.places(), block)
        if isinstance(self._cold, ColdRing):
            return found | self._cold.places(block)
        if self._cold is not None:
            found[self._cold.ring.place] = self._cold.allocated * block
        return found

    def _made(self, shape: Shape) -> tuple[CpuRing, CpuRing]:
        if self._rings is None:
            pinned = CpuRing(self.sizes.pinned, shape, self._dtype)
            self._rings = pinned, CpuRing(self.sizes.hot_memory, shape, self._dtype)
            self._tell()
        return self._rings

    def _made_cold(self, shape: Shape) -> Cold:
        if self._cold is None:
            self._made(shape)
            self._cold = _make_cold(self._plan, self._codecs, shape)
            self._tell()
        return self._cold

    def _tell(self) -> None:
        """Tell the kernels where the memory lies."""
        memory, cold = self._memory, self._cold
        if self._rings is not None:
            memory.pinned, memory.hot = (ring.struct for ring in self._rings)
        if isinstance(cold, CpuUnencodedBlocks):
            memory.unencoded = cold.ring.struct
        elif isinstance(cold, CpuBlocks):
            cold.fill_in(memory)


# Of the layer before, which mostly asked for the same.
_latest: list[CpuStep] = []


def _step(shape: Shape, sight: Sight, before: Ledger, plan: LayerPlan) -> CpuStep:
    """Queries and new tokens for the kernels; one object for layers that are alike."""
    for step in _latest:
        if step.is_for(shape, sight, before, plan):
            return step
    made = CpuStep(shape=shape, sight=sight, before=before, plan=plan)
    _latest[:] = [made]
    return made


def reads(plan: LayerPlan, shape: Shape) -> bool:
    """Whether the kernels take tokens of shape [B, Hkv, D] and all that they are encoded to."""
    cold = _make_cold(plan, plan.codecs, shape)
    return not shape[2] % HEAD_DIM_STEP and not isinstance(cold, ColdRing)


def reads_all(plan: CachePlan) -> bool:
    """The same of all layers of a plan, for one sequence."""
    shape = (1, plan.shape.kv_heads, plan.shape.head_dim)
    # One layer of each pair of codecs.
    layers = {plan.config.codecs_of(index): index for index in range(plan.shape.layers)}
    return all(reads(plan.layer(index), shape) for index in layers.values())


def _make_cold(plan: LayerPlan, codecs: tuple[Codec, Codec], shape: Shape) -> Cold:
    """The cold ring of a plan: for the kernels, if they read its codecs."""
    slots, block = plan.sizes.cold_memory, plan.sizes.block
    if all(isinstance(codec, UnencodedCodec) for codec in codecs):
        return CpuUnencodedBlocks(slots, block=block, shape=shape, dtype=plan.hot_dtype)
    blocks = CpuBlocks.of(slots, block=block, shape=shape, codecs=codecs)
    return blocks or ColdRing(slots, block=block, codecs=codecs)


def _shape(tokens: CpuTokens) -> Shape:
    batch, heads, _, dim = tokens.keys.shape
    return batch, heads, dim
