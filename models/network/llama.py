"""The Llama network: grouped-query attention, RoPE, SwiGLU, RMS norms.

One definition for every device. Attention is `kvcache.attend` and nothing else,
the rest goes through `Ops`; how keys and values are stored, how a weight is packed
and what computes is not known here.
Source: Touvron et al. (arXiv 2302.13971, 2307.09288); GQA: arXiv 2305.13245.
"""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from kvcache import (
    CacheConfig,
    ModelShape,
    Rotation,
    TwoTierKVCache,
    attend,
    make_prompt_cache,
)
from kvcache.attention import AttendingCache
from models.errors import GGUFError
from models.network.config import LlamaConfig
from models.network.ops import MlxOps, Ops
from models.network.rope import Rope
from models.network.weights import Weights


class Block(nn.Module):
    """One transformer layer: pre-normed attention and SwiGLU feed-forward, with residuals."""

    def __init__(
        self, config: LlamaConfig, weights: Weights, index: int, rope: Rope, ops: Ops
    ) -> None:
        super().__init__()
        self.head_dim, self.heads, self.kv_heads = config.head_dim, config.heads, config.kv_heads
        self.scale = config.head_dim**-0.5
        self.rope, self.ops = rope, ops
        prefix, eps = f"blk.{index}", config.norm_eps
        self.attention_norm = weights.norm(f"{prefix}.attn_norm", eps=eps)
        self.q = weights.linear(f"{prefix}.attn_q")
        self.k = weights.linear(f"{prefix}.attn_k")
        self.v = weights.linear(f"{prefix}.attn_v")
        self.output = weights.linear(f"{prefix}.attn_output")
        self.mlp_norm = weights.norm(f"{prefix}.ffn_norm", eps=eps)
        self.gate = weights.linear(f"{prefix}.ffn_gate")
        self.up = weights.linear(f"{prefix}.ffn_up")
        self.down = weights.linear(f"{prefix}.ffn_down")

    def __call__(self, x: mx.array, cache: AttendingCache | None) -> mx.array:
        q, k, v = self.ops.attention_inputs(
            x,
            self.attention_norm,
            (self.q, self.k, self.v),
            self.rope,
            head_dim=self.head_dim,
            offset=0 if cache is None else cache.offset,
        )  # [B, Hq, L, D], [B, Hkv, L, D] twice
        seen = attend(q, k, v, cache=cache, scale=self.scale)  # [B, Hq, L, D]
        x = self.ops.attention_output(seen, self.output, x)  # [B, L, hidden]
        return self.ops.feed_forward(x, self.mlp_norm, self.gate, self.up, self.down)


class Model(nn.Module):
    """Token ids -> logits. Fits mlx-lm's generation loop (`layers`, `make_cache`)."""

    def __init__(self, config: LlamaConfig, weights: Weights, ops: Ops | None = None) -> None:
        """Take the network's tensors, all there and well shaped; `ops` defaults to plain MLX."""
        super().__init__()
        self.config = config
        self.ops = ops or MlxOps()
        self.embedding = weights.embedding("token_embd")
        self._rope = _make_rope(config, weights)
        self.layers = [
            Block(config, weights, index, self._rope, self.ops) for index in range(config.layers)
        ]
        self.norm = weights.norm("output_norm", eps=config.norm_eps)
        if "output.weight" in weights:
            self.output = weights.linear("output")

    @property
    def shape(self) -> ModelShape:
        """What a cache needs to know."""
        return self.config.shape

    @property
    def rotation(self) -> Rotation:
        """What rope does to queries and keys."""
        return Rotation(periods=self._rope.periods, traditional=True)

    @property
    def vocabulary(self) -> int:
        """How many token ids the network knows."""
        return int(self.embedding.as_linear.weight.shape[0])

    def make_cache(self) -> list[TwoTierKVCache]:
        """An empty default cache, one per layer (mlx-lm calls this)."""
        return make_prompt_cache(self, CacheConfig())

    def hidden(self, ids: mx.array, cache: Sequence[AttendingCache] | None = None) -> mx.array:
        """Token ids [B, L] -> normed states [B, L, hidden], appending to `cache`."""
        x = self.ops.embed(ids, self.embedding)
        x = self.ops.layers(x, self.layers, cache or [None] * len(self.layers))
        normed: mx.array = self.norm(x)
        return normed

    def logits(self, hidden: mx.array) -> mx.array:
        """States [..., hidden] -> logits [..., vocabulary]."""
        output = self.output if "output" in self else self.embedding.as_linear
        return self.ops.linear(hidden, output)

    def __call__(self, ids: mx.array, cache: Sequence[AttendingCache] | None = None) -> mx.array:
        """Token ids [B, L] -> logits [B, L, vocabulary], appending to `cache`."""
        return self.logits(self.hidden(ids, cache))


def _make_rope(config: LlamaConfig, weights: Weights) -> Rope:
    factors = None
    if "rope_freqs.weight" in weights:
        factors = weights.vector("rope_freqs.weight", mx.float32)
        if (least := float(np.asarray(factors).min())) <= 0:
            raise GGUFError(f"tensor 'rope_freqs.weight' holds {least}, expected positive numbers")
    return Rope(
        config.rope_dims,
        base=config.rope_base,
        factor=config.rope_factor,
        frequency_factors=factors,
    )
