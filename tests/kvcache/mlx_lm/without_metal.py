"""Plain operations for the Metal kernels of which two of mlx-lm's models are made.

They are as right as these models' layers need to be for a test of caches: one layer's keys
and values are what mlx-lm's are, up to rounding.
"""

from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import bitlinear_layers


def stand_in(module: ModuleType) -> None:
    """Give a module of mlx-lm plain operations, where there is no Metal."""
    if mx.metal.is_available():
        return
    for each in PLAIN:
        if each.__name__ in vars(module):
            setattr(module, each.__name__, each)
    bitlinear_layers.BitLinear.execute_matmul_kernel = _ternary_product


def _ternary_product(self: Any, x: mx.array, packed: mx.array) -> mx.array:
    """x times weights of -1, 0 and 1, four rows in a byte."""
    rows = mx.concatenate([(packed >> shift) & 3 for shift in (0, 2, 4, 6)])
    weights = rows[: self.out_features].astype(x.dtype) - 1
    product: mx.array = x @ weights.T * self.weight_scale
    return product


def qk_norm(
    qkvg: mx.array, *, n_heads: int, n_kv_heads: int, head_dim: int, eps: float, query_scale: float
) -> list[mx.array]:
    """Normed queries and keys [B, L, H, D], queries scaled."""
    both = qkvg[..., : (n_heads + n_kv_heads) * head_dim]
    normed = _normed(both.reshape(*both.shape[:-1], -1, head_dim), eps)
    return [normed[..., :n_heads, :] * query_scale, normed[..., n_heads:, :]]


def qk_norm_rope(
    qkvg: mx.array, *, rope_base: float, offset: int, head_dim: int, **norm: Any
) -> list[mx.array]:
    """The same, turned."""
    turned = [
        mx.fast.rope(
            x.swapaxes(1, 2),
            head_dim,
            traditional=True,
            base=rope_base,
            scale=1.0,
            offset=offset,
        )
        for x in qk_norm(qkvg, head_dim=head_dim, **norm)
    ]
    return [x.swapaxes(1, 2) for x in turned]


def expert_routing(
    logits: mx.array,
    expert_bias: mx.array,
    *,
    top_k: int,
    multiplier: float,
    score_eps: float,
    route_scale: float,
) -> list[mx.array]:
    """The experts with the highest scores, and weights that add up."""
    scores = mx.sigmoid(logits * multiplier)
    chosen = mx.argsort(-(scores + expert_bias), axis=-1)[..., :top_k]
    weights = mx.take_along_axis(scores, chosen, axis=-1)
    return [chosen, weights / (weights.sum(axis=-1, keepdims=True) + score_eps) * route_scale]


def post_expert_norm_combine(
    experts: mx.array, weights: mx.array, *, norm_weight: mx.array, eps: float
) -> mx.array:
    """Normed outputs of experts, added by their weights."""
    return (_normed(experts * norm_weight, eps) * weights[..., None]).sum(axis=-2)


def rms_norm_sigmoid_gate(x: mx.array, gate: mx.array, *, eps: float) -> mx.array:
    """Normed heads [B, H, L, D] side by side, gated."""
    return _normed(x, eps).swapaxes(1, 2).reshape(gate.shape) * mx.sigmoid(gate)


def norm_add_norm(
    branch: mx.array,
    stream: mx.array,
    *,
    alpha: mx.array,
    beta: mx.array,
    post_weight: mx.array | None,
    post_eps: float,
    next_norm: nn.Module | None,
) -> tuple[mx.array, mx.array | None]:
    """A normed branch added to the stream, and the sum normed for the next."""
    scaled = branch if post_weight is None else branch * post_weight
    total = alpha * stream + beta * _normed(scaled, post_eps)
    return total, None if next_norm is None else next_norm(total)


def pre_norm(stream: mx.array, norm: nn.Module, *, dtype: mx.Dtype) -> mx.array:
    """The stream normed."""
    normed: mx.array = norm(stream).astype(dtype)
    return normed


def _normed(x: mx.array, eps: float) -> mx.array:
    return mx.fast.rms_norm(x, None, eps)


PLAIN = (
    qk_norm,
    qk_norm_rope,
    expert_routing,
    post_expert_norm_combine,
    rms_norm_sigmoid_gate,
    norm_add_norm,
    pre_norm,
)
