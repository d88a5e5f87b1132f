"""The network's steps by the native CPU kernels, eagerly, one call each.

A step whose weights the kernels do not take (dense, or with a bias) runs in
plain MLX instead; `count_plain` tells whoever reports.
"""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from kvcache import TwoTierKVCache
from kvcache.attention import AttendingCache
from kvcache.cpu_layers import Heads, run_layers
from kvcache.native.library import Floats, Library
from kvcache.native.weights import Layer as Weights
from kvcache.native.weights import Weight
from models.network.layers import Embedding, QuantizedLinear
from models.network.llama import Block, Model
from models.network.ops import Layer, MlxOps, Projection
from models.network.rope import Rope


class NativeOps:
    """`Ops` over float32 activations on the CPU."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._plain = MlxOps()
        # By the layer's identity; the layer is kept so that the identity stays its own.
        self._weights: dict[int, tuple[Projection, Weight]] = {}
        self._norms: dict[int, tuple[nn.RMSNorm, Floats]] = {}
        self._layers: dict[int, tuple[Block, Weights | None]] = {}

    def embed(self, ids: mx.array, table: Embedding) -> mx.array:
        if not _fits(table.as_linear):
            return self._plain.embed(ids, table)
        flat = np.asarray(ids).astype(np.int64).reshape(-1)
        vectors = self._library.embed(flat, self._weight(table.as_linear))
        return mx.array(vectors.reshape(*ids.shape, -1))

    def attention_inputs(
        self,
        x: mx.array,
        norm: nn.RMSNorm,
        projections: tuple[Projection, Projection, Projection],
        rope: Rope,
        *,
        head_dim: int,
        offset: int,
    ) -> tuple[mx.array, mx.array, mx.array]:
        if not all(_fits(layer) for layer in projections):
            return self._plain.attention_inputs(
                x, norm, projections, rope, head_dim=head_dim, offset=offset
            )
        query, key, value = projections
        q, k, v = self._library.attention_inputs(
            _floats(x),
            self._norm(norm),
            norm.eps,
            (self._weight(query), self._weight(key), self._weight(value)),
            dim=head_dim,
            periods=rope.periods,
            offset=offset,
        )
        return mx.array(q), mx.array(k), mx.array(v)

    def linear(self, x: mx.array, weight: Projection) -> mx.array:
        if not _fits(weight):
            return self._plain.linear(x, weight)
        rows = _floats(x).reshape(-1, x.shape[-1])
        return _like(self._library.linear(rows, self._weight(weight)), x)

    def attention_output(self, seen: mx.array, weight: Projection, residual: mx.array) -> mx.array:
        if not _fits(weight):
            return self._plain.attention_output(seen, weight, residual)
        batch, _, length, _ = seen.shape
        merged = np.asarray(seen).swapaxes(1, 2).reshape(batch * length, -1)
        added = _floats(residual).reshape(batch * length, -1)
        return _like(self._library.linear_add(merged, self._weight(weight), added), residual)

    def feed_forward(
        self, x: mx.array, norm: nn.RMSNorm, gate: Projection, up: Projection, down: Projection
    ) -> mx.array:
        if not (_fits(gate) and _fits(up) and _fits(down)):
            return self._plain.feed_forward(x, norm, gate, up, down)
        out = self._library.feed_forward(
            _floats(x).reshape(-1, x.shape[-1]),
            self._norm(norm),
            norm.eps,
            self._weight(gate),
            self._weight(up),
            self._weight(down),
        )
        return _like(out, x)

    def layers(
        self, x: mx.array, layers: Sequence[Layer], caches: Sequence[AttendingCache | None]
    ) -> mx.array:
        blocks = [layer for layer in layers if isinstance(layer, Block)]
        own = [cache for cache in caches if isinstance(cache, TwoTierKVCache)]
        if len(blocks) == len(own) == len(layers):
            weights = [self._layer(block) for block in blocks]
            ready = [weight for weight in weights if weight is not None]
            out = np.array(x)
            complete = len(ready) == len(layers)
            if complete and run_layers(out, ready, own, _heads(blocks[0]), self._library):
                return mx.array(out)
        return self._plain.layers(x, layers, caches)

    def _layer(self, block: Block) -> Weights | None:
        """A layer's weights, for good; None where the kernels do not take all of them."""
        known = self._layers.get(id(block))
        if known is None:
            known = self._layers[id(block)] = block, self._make_layer(block)
        return known[1]

    def _make_layer(self, block: Block) -> Weights | None:
        attention = block.q, block.k, block.v, block.output
        feed_forward = block.gate, block.up, block.down
        if not all(_fits(layer) for layer in (*attention, *feed_forward)):
            return None
        norms = [(self._norm(one), one.eps) for one in (block.attention_norm, block.mlp_norm)]
        q, k, v, output = (self._weight(layer) for layer in attention)
        gate, up, down = (self._weight(layer) for layer in feed_forward)
        return Weights(norms, (q, k, v, output), (gate, up, down))

    def _weight(self, layer: Projection) -> Weight:
        known = self._weights.get(id(layer))
        if known is None:
            arrays = (np.asarray(array) for array in (layer.weight, layer.scales, layer.biases))
            weight = Weight(*arrays, bits=layer.weight_bits, group=layer.group_size)
            known = self._weights[id(layer)] = layer, weight
        return known[1]

    def _norm(self, norm: nn.RMSNorm) -> Floats:
        known = self._norms.get(id(norm))
        if known is None:
            known = self._norms[id(norm)] = norm, _floats(norm.weight)
        return known[1]


def _heads(block: Block) -> Heads:
    return Heads(
        query=block.heads,
        kv=block.kv_heads,
        dim=block.head_dim,
        scale=block.scale,
        periods=block.rope.periods,
    )


def count_plain(model: Model) -> int:
    """How many of the network's weights the kernels do not take."""
    layers = [model.embedding.as_linear]
    if "output" in model:
        layers.append(model.output)
    for block in model.layers:
        layers += [block.q, block.k, block.v, block.output, block.gate, block.up, block.down]
    return sum(not _fits(layer) for layer in layers)


def _fits(layer: Projection) -> bool:
    return isinstance(layer, QuantizedLinear) and "bias" not in layer


def _floats(x: mx.array) -> Floats:
    """An array's own memory as float32 in C order; evaluates it."""
    return np.ascontiguousarray(x, np.float32)


def _like(rows: Floats, x: mx.array) -> mx.array:
    """[B * L, columns] -> [B, L, columns] with the leading shape of x."""
    return mx.array(rows.reshape(*x.shape[:-1], -1))
