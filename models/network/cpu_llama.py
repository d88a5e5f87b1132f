"""The Llama network by the CPU kernels: each step of `llama`, or all its layers, in one call.

A second definition of the network, in C++ (`models/native`). A step with weights
that the kernels do not take, those that are not quantized, stays plain MLX's.
"""

from collections.abc import Sequence
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from kvcache import RowsKVCache, TwoTierKVCache
from kvcache.attention import AttendingCache
from kvcache.checks import not_finite
from kvcache.native.structs import Floats
from models.native import packed
from models.native.kernels import Kernels
from models.native.packed import Addition, FeedForward, Inputs, Layer, Norm, Weight
from models.network.config import LlamaConfig
from models.network.layers import Projection, QuantizedLinear
from models.network.llama import AttentionInputs, Block, Model
from models.network.rope import Rope
from models.network.weights import Weights


class CpuBlock(Block):
    """A layer and its weights as the kernels take them.

    packed: all of them, for calls over all layers; None where one is not taken.
    """

    joins = False  # the kernels take each matrix by itself

    def __init__(
        self, config: LlamaConfig, weights: Weights, index: int, rope: Rope, *, kernels: Kernels
    ) -> None:
        super().__init__(config, weights, index, rope)
        self._kernels = kernels
        self._inputs = self._pack_inputs()
        self._output = self._pack_addition(self.output)
        self._feed_forward = self._pack_feed_forward()
        self.packed: Layer | None = None
        if self._inputs and self._output and self._feed_forward:
            self.packed = Layer(self._inputs, self._output, self._feed_forward)

    def attention_inputs(self, x: mx.array, offset: int) -> AttentionInputs:
        if self._inputs is None:
            return super().attention_inputs(x, offset)
        q, k, v = self._kernels.attention_inputs(_floats(x), self._inputs, offset=offset)
        return AttentionInputs(mx.array(q), mx.array(k), mx.array(v))

    def attention_output(self, x: mx.array, seen: mx.array) -> mx.array:
        if self._output is None:
            return super().attention_output(x, seen)
        batch, _, length, _ = seen.shape
        merged = _floats(seen).swapaxes(1, 2).reshape(batch * length, -1)
        return _like(self._kernels.add(merged, self._output, _rows(x)), x)

    def feed_forward(self, x: mx.array) -> mx.array:
        if self._feed_forward is None:
            return super().feed_forward(x)
        return _like(self._kernels.feed_forward(_rows(x), self._feed_forward), x)

    def _pack_inputs(self) -> Inputs | None:
        weights = _pack_all(*self.inputs.products)
        if weights is None:
            return None
        return Inputs(
            weights,
            dim=self.head_dim,
            norm=_norm(self.attention_norm),
            rope=packed.Rope(periods=self.rope.periods),
        )

    def _pack_addition(self, matrix: Projection) -> Addition | None:
        weight = _pack(matrix)
        return None if weight is None else Addition(weight)

    def _pack_feed_forward(self) -> FeedForward | None:
        weights, down = _pack_all(*self.gate_up.products), self._pack_addition(self.down)
        if weights is None or down is None:
            return None
        gate, up = weights
        return FeedForward(gate, up, down, norm=_norm(self.mlp_norm))


class CpuModel(Model):
    """`Model` by the CPU kernels, over float32 activations."""

    def __init__(self, config: LlamaConfig, weights: Weights, kernels: Kernels) -> None:
        super().__init__(config, weights, partial(CpuBlock, kernels=kernels))
        self._kernels = kernels
        self._table = _pack(self.embedding.as_linear)
        self._head = _pack(self.head) if "output" in self else self._table
        matrices = [one for one in self.modules() if isinstance(one, Projection)]
        self.reference_weights = sum(not isinstance(matrix, QuantizedLinear) for matrix in matrices)
        self._packed = tuple(layer.packed for layer in self.layers if layer.packed is not None)

    def embed(self, ids: mx.array) -> mx.array:
        if self._table is None:
            return super().embed(ids)
        flat = np.asarray(ids).astype(np.int64).reshape(-1)
        return mx.array(self._kernels.embed(flat, self._table).reshape(*ids.shape, -1))

    def through_layers(self, x: mx.array, caches: Sequence[AttendingCache | None]) -> mx.array:
        own = [cache for cache in caches if isinstance(cache, TwoTierKVCache | RowsKVCache)]
        out = self._all_at_once(x, own) if len(own) == len(self._packed) == len(caches) else None
        return super().through_layers(x, caches) if out is None else out

    def logits(self, hidden: mx.array) -> mx.array:
        if self._head is None:
            return super().logits(hidden)
        return _like(self._kernels.linear(_rows(hidden), self._head), hidden)

    def _all_at_once(
        self, x: mx.array, caches: Sequence[TwoTierKVCache | RowsKVCache]
    ) -> mx.array | None:
        """x [B, L, hidden] through all layers in one call, appending to their caches.

        None, with nothing appended, where the caches are not alike or do not lend to
        kernels. Raises CacheError for keys or values that are not finite; the layers
        before the one that refused them have appended.
        """
        batch, length, _ = x.shape
        config = self.config
        steps = caches[0].steps((batch, config.kv_heads, config.head_dim), length)
        lent = [memory for cache in caches for memory in cache.lend(steps)]
        if not lent or len(lent) < len(caches) * len(steps):
            return None
        structs = [
            step.struct(heads=config.heads, scale=config.head_dim**-0.5 / step.plan.temperature)
            for step in steps
        ]
        offset, out = caches[0].offset, np.array(x, np.float32)
        done = self._kernels.layers([structs] * len(caches), offset, self._packed, lent, out)
        for cache in caches[:done]:
            cache.commit(steps)
        if done < len(caches):
            raise not_finite(steps[0].plan.hot_dtype)
        return mx.array(out)


def _pack(layer: Projection) -> Weight | None:
    """A weight as the kernels take it; None where they do not."""
    if not isinstance(layer, QuantizedLinear):
        return None
    arrays = (np.asarray(array) for array in (layer.weight, layer.scales, layer.biases))
    added = _floats(layer.bias) if "bias" in layer else None
    return Weight(*arrays, bits=layer.weight_bits, group=layer.group_size, added=added)


def _pack_all(*layers: Projection) -> tuple[Weight, ...] | None:
    """Weights of one step, all or none."""
    packed = tuple(weight for layer in layers if (weight := _pack(layer)) is not None)
    return packed if len(packed) == len(layers) else None


def _norm(norm: nn.RMSNorm) -> Norm:
    return Norm(weight=_floats(norm.weight), eps=norm.eps)


def _floats(x: mx.array) -> Floats:
    """An array's own memory as float32 in C order; evaluates it."""
    return np.ascontiguousarray(x, np.float32)


def _rows(x: mx.array) -> Floats:
    """[..., columns] -> [rows, columns]"""
    return _floats(x).reshape(-1, x.shape[-1])


def _like(rows: Floats, x: mx.array) -> mx.array:
    """[B * L, columns] -> [B, L, columns] with the leading shape of x."""
    return mx.array(rows.reshape(*x.shape[:-1], -1))
