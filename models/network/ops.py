"""The fused steps that the network is written in, and their plain MLX form.

`NativeOps` computes the same by the native CPU kernels. A step takes and gives
MLX arrays; what is fused inside it is the implementation's affair.
"""

from collections.abc import Sequence
from typing import Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from kvcache import EmberError
from kvcache.attention import AttendingCache
from kvcache.config import on_gpu
from models.network.layers import Embedding, Linear, QuantizedLinear
from models.network.rope import Rope

Projection = Linear | QuantizedLinear


class Layer(Protocol):
    """A network's layer, as `Ops.layers` sees it."""

    def __call__(self, x: mx.array, cache: AttendingCache | None) -> mx.array:
        """x [B, L, hidden] through this layer."""
        ...


class Ops(Protocol):
    """What a Llama block does between attention calls. x is [B, L, hidden]."""

    def embed(self, ids: mx.array, table: Embedding) -> mx.array:
        """Token ids [B, L] -> vectors [B, L, hidden]. Raises EmberError for ids outside `table`."""
        ...

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
        """Queries, keys, values of normed x as [B, heads, L, D]; the first two rotated."""
        ...

    def linear(self, x: mx.array, weight: Projection) -> mx.array:
        """x W^T + b."""
        ...

    def attention_output(self, seen: mx.array, weight: Projection, residual: mx.array) -> mx.array:
        """residual + the heads of `seen` [B, H, L, D], side by side, times W^T + b."""
        ...

    def feed_forward(
        self, x: mx.array, norm: nn.RMSNorm, gate: Projection, up: Projection, down: Projection
    ) -> mx.array:
        """x + down(silu(gate(n)) * up(n)) with n = norm(x)."""
        ...

    def layers(
        self, x: mx.array, layers: Sequence[Layer], caches: Sequence[AttendingCache | None]
    ) -> mx.array:
        """x through all layers, appending to their caches."""
        ...


class MlxOps:
    """The steps composed of MLX operations, on any device."""

    def layers(
        self, x: mx.array, layers: Sequence[Layer], caches: Sequence[AttendingCache | None]
    ) -> mx.array:
        for layer, cache in zip(layers, caches, strict=True):
            x = layer(x, cache)
        return x

    def embed(self, ids: mx.array, table: Embedding) -> mx.array:
        rows = table.as_linear.weight.shape[0]
        if on_gpu() and ids.shape[-1] == 1:
            # One id may still be on its way: it is kept inside the table, but not waited for.
            return table(mx.clip(ids, 0, rows - 1))
        found = np.asarray(ids)
        if found.size and not 0 <= found.min() <= found.max() < rows:
            raise EmberError(
                f"got token ids {found.min()} to {found.max()}, expected 0 to {rows - 1}"
            )
        return table(ids)

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
        normed = norm(x)
        q, k, v = (
            mx.unflatten(layer(normed), -1, (-1, head_dim)).swapaxes(1, 2) for layer in projections
        )
        return rope(q, offset=offset), rope(k, offset=offset), v

    def linear(self, x: mx.array, weight: Projection) -> mx.array:
        return weight(x)

    def attention_output(self, seen: mx.array, weight: Projection, residual: mx.array) -> mx.array:
        return residual + weight(seen.swapaxes(1, 2).flatten(2))

    def feed_forward(
        self, x: mx.array, norm: nn.RMSNorm, gate: Projection, up: Projection, down: Projection
    ) -> mx.array:
        normed = norm(x)
        gated = gate(normed)
        return x + down(gated * mx.sigmoid(gated) * up(normed))
