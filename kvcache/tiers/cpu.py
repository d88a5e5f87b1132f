"""A layer's tiers in plain memory, attended by the native CPU kernels.

What the kernels do not take (a mask array, an odd head dimension) is attended in
plain MLX instead, and a codec without a native form is decoded by MLX.
"""

from collections.abc import Sequence
from functools import partial

import mlx.core as mx
import numpy as np

from kvcache.checks import check_finite
from kvcache.codecs.base import Encoded
from kvcache.codecs.plain import PlainCodec
from kvcache.config import HotDtype
from kvcache.native import structs
from kvcache.native.library import library
from kvcache.native.structs import HEAD_DIM_STEP, Floats, strided
from kvcache.tiers.cold_ring import ColdRing
from kvcache.tiers.cpu_blocks import HostColdRing
from kvcache.tiers.cpu_ring import HostRing, HostTokens, side_by_side
from kvcache.tiers.cpu_unencoded import HostPlainRing
from kvcache.tiers.ledger import Ledger
from kvcache.tiers.memory import Attend, Tiers, TierView, Tokens
from kvcache.tiers.plain_mlx import attend_view
from kvcache.tiers.plan import LayerPlan
from kvcache.tiers.sight import Piece, Sight
from kvcache.turn import Rotation

Shape = tuple[int, int, int]
Cold = HostColdRing | HostPlainRing | ColdRing


class HostTiers(Tiers[HostTokens]):
    """Written in place."""

    def __init__(self, plan: LayerPlan) -> None:
        self.sizes = plan.sizes
        self._plan, self._dtype = plan, plan.hot_dtype
        # Allocated with the first tokens, whose shape they need.
        self._rings: tuple[HostRing, HostRing] | None = None  # pinned, hot
        self._cold: Cold | None = None
        self._struct: structs.TierMemory | None = None

    # -- new tokens --

    def prepare(self, k: mx.array, v: mx.array) -> HostTokens:
        if self._plan.check_finite:
            check_finite(k, v, self._dtype, on_host=True)
        return self.run((k, v))

    def run(self, tokens: Tokens) -> HostTokens:
        return HostTokens.of(*tokens, self._dtype)

    def arrays(self, run: HostTokens) -> Tokens:
        return run.as_arrays(self._dtype)

    def joined(self, runs: Sequence[HostTokens]) -> HostTokens:
        return side_by_side(runs)

    # -- attention --

    def attend(
        self,
        q: mx.array,
        new: HostTokens | None,
        sight: Sight,
        rotation: Rotation | None,
        scale: float,
    ) -> mx.array:
        if not self._is_native(q, new, sight):
            return super().attend(q, new, sight, rotation, scale)
        queries: Floats = np.ascontiguousarray(q.astype(mx.float32))
        turned = queries
        if rotation is not None and any(sight.turns):
            turned = rotation.turn_host(queries, tuple(sight.turns))
        # The pieces point into these, some of which are made for this call.
        held = self._pieces(sight.ledger)
        pieces = [_piece(tokens, position) for position, tokens in held]
        if sight.ledger.sink:
            pieces[0].pinned = True
        if new is not None:
            pieces.append(_piece(new, sight.position))
        # New pinned tokens come as any others: nothing was let go before them.
        lowest = [low if turn else 0 for low, turn in zip(sight.lowest, sight.turns, strict=True)]
        out = library().attend_pieces(
            queries,
            turned,
            pieces,
            self._blocks(sight.ledger),
            self._kv_heads(new),
            np.array(lowest, np.int64),
            sight.position,
            scale,
        )
        return mx.array(out).astype(q.dtype)

    def attending(self, ledger: Ledger, new: HostTokens | None) -> Attend:
        return partial(attend_view, None if new is None else self.arrays(new), self.view(ledger))

    def is_plain(self, dim: int) -> bool:
        return dim % HEAD_DIM_STEP != 0

    def _is_native(self, q: mx.array, new: HostTokens | None, sight: Sight) -> bool:
        """Whether the kernels take this. They see pinned tokens whole, not causally."""
        causal = sight.mask == "causal" and not self.is_plain(q.shape[3])
        pins = new is not None and sight.position < self.sizes.pinned
        return causal and not (pins and any(sight.turns))

    def _pieces(self, ledger: Ledger) -> list[tuple[int, HostTokens]]:
        """(position, tokens) of what the kernels read unencoded, pinned tokens first."""
        if self._rings is None:
            return []
        pinned, hot = self._rings
        pieces = [*pinned.pieces(0, ledger.sink)]
        cold, start = self._cold, ledger.cold_start
        if isinstance(cold, HostPlainRing):
            pieces += [(start + at, run) for at, run in cold.pieces(ledger.first, ledger.end)]
        elif isinstance(cold, ColdRing) and ledger.cold:
            keys, values = cold.view(ledger.first, ledger.end).decoded()
            pieces.append((start, HostTokens.of(keys, values, HotDtype.F32)))
        start = ledger.hot_start
        return pieces + [(start + at, run) for at, run in hot.pieces(ledger.hot_number, ledger.hot)]

    def _blocks(self, ledger: Ledger) -> structs.Blocks:
        """The cold blocks that the kernels read encoded."""
        if not isinstance(self._cold, HostColdRing) or not ledger.cold:
            return structs.Blocks()
        return self._cold.struct(ledger.first, ledger.end, ledger.cold_start)

    def _kv_heads(self, new: HostTokens | None) -> int:
        if new is not None:
            return int(new.keys.shape[1])
        assert self._rings is not None, "attended before the first token"
        return self._rings[0].shape[1]

    # -- memory --

    def view(self, ledger: Ledger) -> TierView:
        pieces: list[Piece] = []
        if self._rings is None or not ledger.held:
            return TierView(pieces=pieces, cold=None)
        pinned, hot = self._rings
        if ledger.sink:
            keys, values = self.arrays(pinned.read(0, ledger.sink))
            pieces.append(Piece(keys=keys, values=values, position=0, pinned=True))
        if ledger.hot:
            keys, values = self.arrays(hot.read(ledger.hot_number, ledger.hot))
            pieces.append(Piece(keys=keys, values=values, position=ledger.hot_start))
        cold = self._cold.view(ledger.first, ledger.end) if self._cold and ledger.cold else None
        return TierView(pieces=pieces, cold=cold)

    def read_hot(self, number: int, count: int) -> HostTokens:
        assert self._rings is not None, "read before the first write"
        return self._rings[1].read(number, count)

    def write_pinned(self, position: int, run: HostTokens) -> None:
        self._made(_shape(run.keys))[0].write(position, run)

    def write_hot(self, number: int, run: HostTokens) -> None:
        self._made(_shape(run.keys))[1].write(number, run)

    def write_cold(self, number: int, run: HostTokens) -> None:
        cold = self._made_cold(_shape(run.keys))
        if isinstance(cold, ColdRing):
            cold.write(number, *self.arrays(run))
        else:
            cold.write(number, run)

    def put_cold(self, number: int, keys: Encoded, values: Encoded) -> None:
        _, batch, heads = next(iter(keys.parts.values())).shape[:3]
        self._made_cold((batch, heads, keys.dim)).put(number, keys, values)

    def pending(self) -> list[mx.array]:
        return self._cold.pending() if isinstance(self._cold, ColdRing) else []

    @property
    def allocated_tokens(self) -> int:
        return sum(ring.capacity for ring in self._rings or ())

    @property
    def allocated_blocks(self) -> int:
        return 0 if self._cold is None else self._cold.allocated

    def struct(self, shape: Shape) -> structs.TierMemory | None:
        """All of it as the kernels take it, for good; None where a codec has no native form."""
        if self._struct is None:
            cold, (pinned, hot) = self._made_cold(shape), self._made(shape)
            if isinstance(cold, ColdRing):
                return None
            self._struct = structs.TierMemory(pinned=pinned.struct, hot=hot.struct)
            if isinstance(cold, HostPlainRing):
                self._struct.plain = cold.ring
            else:
                cold.fill_in(self._struct)
        return self._struct

    def reserve(self, first: int, end: int) -> None:
        """Make room for the blocks [first, end), once the memory is made."""
        if isinstance(self._cold, HostColdRing):
            self._cold.reserve(first, end)

    def _made(self, shape: Shape) -> tuple[HostRing, HostRing]:
        if self._rings is None:
            pinned = HostRing(self.sizes.pinned, shape, self._dtype)
            self._rings = pinned, HostRing(self.sizes.ring, shape, self._dtype)
        return self._rings

    def _made_cold(self, shape: Shape) -> Cold:
        self._made(shape)
        if self._cold is None:
            self._cold = _make_cold(self._plan, shape)
        return self._cold


def _make_cold(plan: LayerPlan, shape: Shape) -> Cold:
    """The cold ring of a plan, as native as its codecs allow."""
    slots, block = plan.sizes.slots, plan.sizes.block
    keys, values = plan.key_codec, plan.value_codec
    if isinstance(keys, PlainCodec) and isinstance(values, PlainCodec):
        return HostPlainRing(slots, block=block, shape=shape, codec=keys, dtype=plan.hot_dtype)
    native = HostColdRing.of(slots, block=block, shape=shape, keys=keys, values=values)
    return native or ColdRing(slots, block=block, keys=keys, values=values)


def _shape(keys: structs.Array) -> Shape:
    batch, heads, _, dim = keys.shape
    return batch, heads, dim


def _piece(tokens: HostTokens, position: int) -> structs.Piece:
    keys, values = strided(tokens.keys), strided(tokens.values)
    return structs.Piece(keys, values, tokens.length, position, False)
