"""The network by the CPU kernels: each step of `llama`, or all its layers, in one call.

A second definition of every architecture, in C++ (`models/native`), over the file's own bytes.
"""

from collections.abc import Callable, Sequence
from ctypes import c_int64
from dataclasses import replace
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from kvcache import RowsKVCache, TwoTierKVCache
from kvcache.attention import AttendingCache
from kvcache.checks import not_finite
from kvcache.native.structs import Floats, TierMemory, TierStep
from kvcache.tiers.cpu_step import CpuStep
from kvcache.tiers.ledger import Ledger
from models.gguf.checks import not_finite as not_finite_weights
from models.gguf.tensor import Tensor
from models.native import packed
from models.native.kernels import Kernels, TierSteps
from models.network.config import NetworkConfig
from models.network.layers import HoldMatrix, Projection
from models.network.llama import AttentionInputs, Block, Model, StepStoppedError, starts_of
from models.network.rope import Rope, Starts
from models.network.switches import Activation
from models.network.weights import Weights

# Seconds that layers run before `stopped` is asked: no token takes so long, and to begin anew
# costs a prompt's layers less than a hundredth of it.
_PATIENCE = 0.2
# Caches whose layers can be computed in one call.
_LENDING = (TwoTierKVCache, RowsKVCache)


class CpuMatrix(nn.Module):
    """A matrix whose bytes stay where they are, in the mapped file.

    packed: the same as the kernels take it.
    """

    def __init__(self, kernels: Kernels, tensor: Tensor, bias: mx.array | None) -> None:
        super().__init__()
        added = None if bias is None else _floats(bias)
        self.packed = packed.Weight(tensor.data, kind=tensor.type, added=added)
        self._kernels = kernels

    def __call__(self, x: mx.array) -> mx.array:
        return _like(self._kernels.linear(_rows(x), self.packed, length=_length(x)), x)

    @property
    def rows(self) -> int:
        rows: int = self.packed.rows
        return rows

    def look_up(self, ids: mx.array, scale: float) -> mx.array:
        flat = np.asarray(ids).astype(np.int64).reshape(-1)
        found = self._kernels.embed(flat, self.packed, factor=scale)
        return mx.array(found.reshape(*ids.shape, -1))


class CpuNorm(nn.RMSNorm):
    """The norm behind the last layer: MLX would wait for a thread of its own."""

    def __init__(self, kernels: Kernels, norm: nn.RMSNorm) -> None:
        super().__init__(norm.weight.size, norm.eps)
        self.weight = norm.weight
        self._kernels = kernels

    def __call__(self, x: mx.array) -> mx.array:
        norm = packed.RowNorm(packed.Norm(weight=_floats(self.weight), eps=self.eps))
        return _like(self._kernels.normalize(_rows(x), norm), x)


def hold_in_place(kernels: Kernels) -> HoldMatrix:
    """Holds one tensor at a time: the kernels need none joined. A part of its columns is copied.

    Raises `GGUFError` for one whose weights are not finite; for that its scales are read.
    """

    def hold(tensors: Sequence[Tensor], bias: mx.array | None, _dtype: mx.Dtype) -> CpuMatrix:
        (tensor,) = map(Tensor.in_one_piece, tensors)
        if not kernels.are_finite(tensor.data, tensor.type):
            raise not_finite_weights(tensor)
        return CpuMatrix(kernels, tensor, bias)

    return hold


class CpuInputs(Block):
    """A layer whose queries, keys and values are one call of the kernels."""

    def __init__(
        self,
        config: NetworkConfig,
        weights: Weights,
        index: int,
        rope: Rope | None,
        *,
        kernels: Kernels,
    ) -> None:
        super().__init__(config, weights, index, rope)
        self._kernels = kernels
        self._inputs = self._pack_inputs()

    def turn_by(self, rope: Rope | None) -> None:
        super().turn_by(rope)
        self._inputs = self._pack_inputs()

    def attention_inputs(self, x: mx.array, starts: Starts) -> AttentionInputs:
        q, k, v = self._kernels.attention_inputs(
            _floats(x), self._inputs, starts=_each(starts, x.shape[0])
        )
        return AttentionInputs(mx.array(q), mx.array(k), mx.array(v))

    def _pack_inputs(self) -> packed.Inputs:
        switches, rope = self.switches, self.rope
        return packed.Inputs(
            [_packed(matrix) for matrix in self.inputs],
            dim=self.head_dim,
            norm=self._pack_norm("attention_norm"),
            query_norm=self._pack_norm("query_norm"),
            key_norm=self._pack_norm("key_norm"),
            rope=None if rope is None else _packed_rope(rope),
            query_factors=None if self.query_factors is None else _floats(self.query_factors),
            temperature=packed.Temperature(
                scale=switches.temperature_scale, span=switches.temperature_span
            ),
        )

    def _pack_norm(self, name: str) -> packed.Norm | None:
        """None where the network has not got it."""
        if name not in self:
            return None
        return packed.Norm(weight=_floats(self[name].weight), eps=self[name].eps)


class CpuBlock(CpuInputs):
    """A layer and its weights as the kernels take them. packed: all, for calls over all layers."""

    def __init__(
        self,
        config: NetworkConfig,
        weights: Weights,
        index: int,
        rope: Rope | None,
        *,
        kernels: Kernels,
    ) -> None:
        super().__init__(config, weights, index, rope, kernels=kernels)
        self._output = self._pack_addition(self.output, "attention_post_norm")
        self._feed_forward = self._pack_feed_forward()
        self.packed = packed.Layer(self._inputs, self._output, self._feed_forward)

    def turn_by(self, rope: Rope | None) -> None:
        super().turn_by(rope)
        self.packed = packed.Layer(self._inputs, self._output, self._feed_forward)

    def attention_output(self, x: mx.array, seen: mx.array) -> mx.array:
        batch, _, length, _ = seen.shape
        merged = _floats(seen).swapaxes(1, 2).reshape(batch * length, -1)
        return _like(self._kernels.add(merged, self._output, _rows(x), length=length), x)

    def feed_forward(self, x: mx.array) -> mx.array:
        out = self._kernels.feed_forward(_rows(x), self._feed_forward, length=_length(x))
        return _like(out, x)

    def _pack_addition(self, matrix: Projection, norm: str) -> packed.Addition:
        scale = self.switches.residual_scale
        return packed.Addition(_packed(matrix), norm=self._pack_norm(norm), scale=scale)

    def _pack_feed_forward(self) -> packed.FeedForward:
        gate, up = map(_packed, self.gate_up)
        down = self._pack_addition(self.down, "mlp_post_norm")
        gelu = self.switches.activation is Activation.GELU_TANH
        return packed.FeedForward(gate, up, down, norm=self._pack_norm("mlp_norm"), gelu=gelu)


class MappedModel(Model):
    """`Model` over weights that are held in place.

    check: raises where the weights are not what they were, after which nothing that was
    computed with them counts.
    """

    def __init__(
        self,
        config: NetworkConfig,
        weights: Weights,
        block: Callable[[NetworkConfig, Weights, int, Rope | None], Block],
        check: Callable[[], None],
    ) -> None:
        super().__init__(config, weights, block)
        self._check = check

    def through_layers(
        self,
        x: mx.array,
        caches: Sequence[AttendingCache | None],
        stopped: Callable[[], bool] | None = None,
    ) -> mx.array:
        out = super().through_layers(x, caches, stopped)
        self._check()
        return out

    def logits(self, hidden: mx.array) -> mx.array:
        found = super().logits(hidden)
        self._check()
        return found


class CpuModel(MappedModel):
    """`Model` by the CPU kernels, over float32 activations. check: as for `MappedModel`."""

    def __init__(
        self,
        config: NetworkConfig,
        weights: Weights,
        kernels: Kernels,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(config, weights, partial(CpuBlock, kernels=kernels), check)
        self._kernels = kernels
        self.norm = CpuNorm(kernels, self.norm)
        self._scales = tuple(layer.scale for layer in self.layers)
        self._packed = packed.Layers([layer.packed for layer in self.layers])

    def set_context(self, tokens: int) -> None:
        super().set_context(tokens)
        self._packed = packed.Layers([layer.packed for layer in self.layers])

    def through_layers(
        self,
        x: mx.array,
        caches: Sequence[AttendingCache | None],
        stopped: Callable[[], bool] | None = None,
    ) -> mx.array:
        own = [cache for cache in caches if isinstance(cache, _LENDING)]
        if len(own) == len(caches) == self._packed.count:
            out = self._all_at_once(x, own, stopped)
            if out is not None:
                return out
        rows = [cache for cache in caches if isinstance(cache, RowsKVCache)]
        if len(rows) == len(caches):
            return self._row_by_row(x, rows, stopped)
        return super().through_layers(x, caches, stopped)

    def _all_at_once(
        self,
        x: mx.array,
        caches: Sequence[TwoTierKVCache | RowsKVCache],
        stopped: Callable[[], bool] | None,
    ) -> mx.array | None:
        """x [B, L, hidden] through all layers in one call, appending to their caches.

        None, with nothing appended, where caches do not lend to kernels. Raises
        CacheError for keys or values that are not finite, StepStoppedError, and what `check`
        raises; caches then hold no new token (see `_take_back`).
        """
        batch, length, _ = x.shape
        found = _lent(caches, (batch, self.config.kv_heads, self.config.head_dim), length)
        if found is None:
            return None
        steps, memories = found
        structs, out, done = self._structs(steps), np.array(x, np.float32), c_int64()
        starts = _each(starts_of(caches[0]), batch)
        run = partial(self._kernels.layers, structs, starts, self._packed, memories, out, done)
        ended = False
        try:
            while (taken := run(seconds=_PATIENCE)) and done.value < len(caches):
                if stopped is not None and stopped():
                    raise StepStoppedError
            self._check()
            if not taken:
                raise not_finite(steps[done.value][0].plan.hot_dtype)
            ended = True
        finally:
            # Also where Python itself ends the step between two calls.
            for cache, each in zip(caches[: done.value], steps, strict=False):
                cache.commit(each)
            if not ended:
                _take_back(caches, steps, done.value)
        return mx.array(out)

    def _row_by_row(
        self,
        x: mx.array,
        caches: Sequence[RowsKVCache],
        stopped: Callable[[], bool] | None,
    ) -> mx.array:
        """The same of rows of which some are padded: each row's own tokens, as if it were alone.

        Padding comes out as zeros. Of a step that is stopped or refused the rows before it stay.
        """
        batch = caches[0].batch(x.shape[1])
        outputs = [
            self.through_layers(
                x[row : row + 1, span.start : span.stop],
                [cache.rows[row] for cache in caches],
                stopped,
            )
            if span.length
            else x[row : row + 1, :0]
            for row, span in enumerate(batch.spans)
        ]
        for cache in caches:
            cache.passed(batch)
        return batch.joined(outputs)

    def _structs(self, steps: Sequence[Sequence[CpuStep]]) -> list[TierSteps]:
        """The steps of each layer as the kernels take them; one object where they are alike."""
        made, found = dict[tuple[int, float], TierSteps](), list[TierSteps]()
        for each, scale in zip(steps, self._scales, strict=True):
            key = id(each), scale
            if key not in made:
                made[key] = (TierStep * len(each))(
                    *(
                        step.struct(heads=self.config.heads, scale=scale / step.plan.temperature)
                        for step in each
                    )
                )
            found.append(made[key])
        return found


def _take_back(
    caches: Sequence[TwoTierKVCache | RowsKVCache], steps: Sequence[Sequence[CpuStep]], ran: int
) -> None:
    """All layers to where they were before a step of which the first `ran` have appended.

    Where its tokens pushed others out of the hot ring, to the oldest of those, or before. A
    batch's caches cannot: their layers stay apart.
    """
    own = [cache for cache in caches if isinstance(cache, TwoTierKVCache)]
    if not own or not ran:
        return
    offset = min(
        each.before.total
        if each.after.end == each.before.end
        else min(each.before.total, each.before.hot_start)
        for (each,) in steps[:ran]
    )
    while any(cache.offset != offset for cache in own):
        for cache in own:
            cache.rewind(cache.offset - offset)
        offset = min(cache.offset for cache in own)
    # What some have let go all let go: layers that are alike stay so.
    first = dict[Ledger, int]()
    for cache in own:
        kind = replace(cache.ledger, first=0)
        first[kind] = max(first.get(kind, 0), cache.ledger.first)
    for cache in own:
        cache.ledger = replace(cache.ledger, first=first[replace(cache.ledger, first=0)])


def _lent(
    caches: Sequence[TwoTierKVCache | RowsKVCache], shape: tuple[int, int, int], length: int
) -> tuple[list[list[CpuStep]], list[TierMemory]] | None:
    """The steps of each layer, and the memories of all; None where one does not lend.

    `length` new tokens of shape [B, Hkv, D]. Layers that are alike share their steps.
    """
    kinds, steps = list[list[CpuStep]](), list[list[CpuStep]]()
    memories = list[TierMemory]()
    for cache in caches:
        own = None
        for each in kinds:
            if len(lent := cache.lend(each)) == len(each):
                own = each
                break
        if own is None:
            own = cache.steps(shape, length)
            lent = cache.lend(own)
            if not own or len(lent) < len(own):
                return None
            kinds.append(own)
        steps.append(own)
        memories += lent
    return steps, memories


def _packed(matrix: Projection) -> packed.Weight:
    assert isinstance(matrix, CpuMatrix)
    return matrix.packed


def _packed_rope(rope: Rope) -> packed.Rope:
    return packed.Rope(periods=rope.periods, apart=not rope.traditional)


def _floats(x: mx.array) -> Floats:
    """An array's own memory as float32 in C order; evaluates it."""
    return np.ascontiguousarray(x, np.float32)


def _rows(x: mx.array) -> Floats:
    """[..., columns] -> [rows, columns]"""
    return _floats(x).reshape(-1, x.shape[-1])


def _length(x: mx.array) -> int:
    """Tokens of a sequence of x [B, L, columns]; of [B, columns] the last."""
    return x.shape[1] if x.ndim > 2 else 1


def _each(starts: Starts, batch: int) -> tuple[int, ...]:
    """The position of the first token of each row."""
    return (starts,) * batch if isinstance(starts, int) else starts


def _like(rows: Floats, x: mx.array) -> mx.array:
    """[B * L, columns] -> [B, L, columns] with the leading shape of x."""
    return mx.array(rows.reshape(*x.shape[:-1], -1))
