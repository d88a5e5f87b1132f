"""The Llama forward pass in numpy, written from the papers: the oracle of the network.

Whole sequence at once, no cache. Weights come one by one by GGUF name, so that
a model of any size needs one layer's memory.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from models.network.config import NetworkConfig

Array = npt.NDArray[np.floating]
GetTensor = Callable[[str], Array | None]


def forward(config: NetworkConfig, get: GetTensor, ids: Sequence[int]) -> Array:
    """Token ids -> logits [L, vocabulary]; `get` returns None for an absent tensor."""
    embedding = _need(get, "token_embd.weight")
    x = embedding[list(ids)]
    factors = get("rope_freqs.weight")
    for layer in range(config.layers):
        prefix = f"blk.{layer}"
        normed = _norm(x, _need(get, f"{prefix}.attn_norm.weight"), config.norm_eps)
        x = x + _attention(config, get, prefix, normed, factors)
        normed = _norm(x, _need(get, f"{prefix}.ffn_norm.weight"), config.norm_eps)
        gate = normed @ _need(get, f"{prefix}.ffn_gate.weight").T
        up = normed @ _need(get, f"{prefix}.ffn_up.weight").T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ _need(get, f"{prefix}.ffn_down.weight").T
    x = _norm(x, _need(get, "output_norm.weight"), config.norm_eps)
    output = get("output.weight")
    return x @ (embedding if output is None else output).T


def _need(get: GetTensor, name: str) -> Array:
    tensor = get(name)
    assert tensor is not None, name
    return tensor


def _norm(x: Array, weight: Array, eps: float) -> Array:
    normed: Array = x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight
    return normed


def _attention(
    config: NetworkConfig, get: GetTensor, prefix: str, x: Array, factors: Array | None
) -> Array:
    length, dim = len(x), config.head_dim
    q, k, v = (_project(get, f"{prefix}.attn_{part}", x) for part in "qkv")
    q = _rope(config, q.reshape(length, config.heads, dim), factors)
    k = _rope(config, k.reshape(length, config.kv_heads, dim), factors)
    v = v.reshape(length, config.kv_heads, dim)
    groups = config.heads // config.kv_heads
    out = np.empty_like(q)
    for head in range(config.heads):
        scores = q[:, head] @ k[:, head // groups].T / np.sqrt(dim)
        scores[np.triu_indices(length, 1)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, head] = weights / weights.sum(-1, keepdims=True) @ v[:, head // groups]
    return _project(get, f"{prefix}.attn_output", out.reshape(length, -1))


def _project(get: GetTensor, name: str, x: Array) -> Array:
    y = x @ _need(get, f"{name}.weight").T
    bias = get(f"{name}.bias")
    return y if bias is None else y + bias


def _rope(config: NetworkConfig, x: Array, factors: Array | None) -> Array:
    """Turn the pairs (2i, 2i+1) of the first rope_dims dimensions of x [L, H, D]."""
    dims = config.rope_dims
    frequencies = config.rope_base ** (-np.arange(0, dims, 2) / dims)
    if factors is not None:
        frequencies = frequencies / factors
    angles = np.outer(np.arange(len(x)) / config.rope_factor, frequencies)[:, None]  # [L, 1, d/2]
    even, odd = x[..., 0:dims:2], x[..., 1:dims:2]
    turned = x.copy()
    turned[..., 0:dims:2] = even * np.cos(angles) - odd * np.sin(angles)
    turned[..., 1:dims:2] = even * np.sin(angles) + odd * np.cos(angles)
    return turned
