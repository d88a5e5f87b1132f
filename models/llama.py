"""The Llama network: grouped-query attention, RoPE, SwiGLU, RMS norms.

One definition for every device. Attention is `kvcache.attend` and nothing else;
how keys and values are stored, and how a weight is packed, is not known here.
Source: Touvron et al. (arXiv 2302.13971, 2307.09288); GQA: arXiv 2305.13245.
"""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from kvcache import CacheConfig, DynamicKVCache, ModelShape, attend, make_prompt_cache
from models.config import LlamaConfig
from models.rope import Rope
from models.weights import Weights


class Attention(nn.Module):
    """Self-attention of one layer."""

    def __init__(self, config: LlamaConfig, weights: Weights, prefix: str, rope: Rope) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5
        self.rope = rope
        query, held = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q = weights.linear(f"{prefix}.attn_q", rows=query, columns=config.hidden)
        self.k = weights.linear(f"{prefix}.attn_k", rows=held, columns=config.hidden)
        self.v = weights.linear(f"{prefix}.attn_v", rows=held, columns=config.hidden)
        self.output = weights.linear(f"{prefix}.attn_output", rows=config.hidden, columns=query)

    def __call__(self, x: mx.array, cache: DynamicKVCache | None) -> mx.array:
        offset = cache.offset if cache is not None else 0
        q = self.rope(self._heads(self.q(x)), offset=offset)  # [B, Hq, L, D]
        k = self.rope(self._heads(self.k(x)), offset=offset)  # [B, Hkv, L, D]
        v = self._heads(self.v(x))
        out = attend(q, k, v, cache=cache, scale=self.scale)  # [B, Hq, L, D]
        return self.output(out.swapaxes(1, 2).flatten(2))  # [B, L, hidden]

    def _heads(self, x: mx.array) -> mx.array:
        return mx.unflatten(x, -1, (-1, self.head_dim)).swapaxes(1, 2)


class MLP(nn.Module):
    """SwiGLU feed-forward of one layer."""

    def __init__(self, config: LlamaConfig, weights: Weights, prefix: str) -> None:
        super().__init__()
        self.gate = weights.linear(f"{prefix}.ffn_gate", rows=config.ffn, columns=config.hidden)
        self.up = weights.linear(f"{prefix}.ffn_up", rows=config.ffn, columns=config.hidden)
        self.down = weights.linear(f"{prefix}.ffn_down", rows=config.hidden, columns=config.ffn)

    def __call__(self, x: mx.array) -> mx.array:
        gate = self.gate(x)
        return self.down(gate * mx.sigmoid(gate) * self.up(x))


class Block(nn.Module):
    """One transformer layer, pre-normed, with residuals."""

    def __init__(self, config: LlamaConfig, weights: Weights, index: int, rope: Rope) -> None:
        super().__init__()
        prefix = f"blk.{index}"
        size, eps = config.hidden, config.norm_eps
        self.attention_norm = weights.norm(f"{prefix}.attn_norm", size=size, eps=eps)
        self.attention = Attention(config, weights, prefix, rope)
        self.mlp_norm = weights.norm(f"{prefix}.ffn_norm", size=size, eps=eps)
        self.mlp = MLP(config, weights, prefix)

    def __call__(self, x: mx.array, cache: DynamicKVCache | None) -> mx.array:
        x = x + self.attention(self.attention_norm(x), cache)
        return x + self.mlp(self.mlp_norm(x))


class Model(nn.Module):
    """Token ids -> logits. Fits mlx-lm's generation loop (`layers`, `make_cache`)."""

    def __init__(self, config: LlamaConfig, weights: Weights) -> None:
        """Take the network's tensors out of `weights`.

        Raises GGUFError for a tensor that is missing, misshapen or left over.
        """
        super().__init__()
        self.config = config
        self.embedding = weights.embedding("token_embd", columns=config.hidden)
        rope = _make_rope(config, weights)
        self.layers = [Block(config, weights, i, rope) for i in range(config.layers)]
        self.norm = weights.norm("output_norm", size=config.hidden, eps=config.norm_eps)
        if "output.weight" in weights:
            self.output = weights.linear("output", rows=self.vocabulary, columns=config.hidden)
        weights.expect_empty()

    @property
    def shape(self) -> ModelShape:
        """What a cache needs to know."""
        return self.config.shape

    @property
    def vocabulary(self) -> int:
        """How many token ids the network knows."""
        return int(self.embedding.as_linear.weight.shape[0])

    def make_cache(self) -> list[DynamicKVCache]:
        """An empty default cache, one per layer (mlx-lm calls this)."""
        return make_prompt_cache(self, CacheConfig())

    def hidden(self, ids: mx.array, cache: Sequence[DynamicKVCache] | None = None) -> mx.array:
        """Token ids [B, L] -> normed states [B, L, hidden], appending to `cache`."""
        x = self.embedding(ids)
        for index, layer in enumerate(self.layers):
            x = layer(x, None if cache is None else cache[index])
        normed: mx.array = self.norm(x)
        return normed

    def logits(self, hidden: mx.array) -> mx.array:
        """States [..., hidden] -> logits [..., vocabulary]."""
        return self.output(hidden) if "output" in self else self.embedding.as_linear(hidden)

    def __call__(self, ids: mx.array, cache: Sequence[DynamicKVCache] | None = None) -> mx.array:
        """Token ids [B, L] -> logits [B, L, vocabulary], appending to `cache`."""
        return self.logits(self.hidden(ids, cache))


def _make_rope(config: LlamaConfig, weights: Weights) -> Rope:
    factors = None
    if "rope_freqs.weight" in weights:
        factors = weights.vector("rope_freqs.weight", config.rope_dims // 2, mx.float32)
    return Rope(
        config.rope_dims,
        base=config.rope_base,
        factor=config.rope_factor,
        frequency_factors=factors,
    )
