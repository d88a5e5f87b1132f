"""The Llama network in plain MLX: grouped-query attention, RoPE, SwiGLU, RMS norms.

The definition, for any device. Attention is `kvcache.attend` and nothing else; how
keys and values are stored and how a weight is packed is not known here, nor that
`cpu_llama` computes the same by kernels of its own.
Source: Touvron et al. (arXiv 2302.13971, 2307.09288); GQA: arXiv 2305.13245.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from kvcache import (
    CacheConfig,
    EmberError,
    ModelShape,
    Rotation,
    TwoTierKVCache,
    attend,
    make_prompt_cache,
)
from kvcache.attention import AttendingCache
from kvcache.config import on_gpu
from models.errors import GGUFError
from models.network.config import LlamaConfig
from models.network.layers import Projection
from models.network.rope import Rope
from models.network.weights import Weights


class AttentionInputs(NamedTuple):
    """Queries [B, Hq, L, D], keys and values [B, Hkv, L, D] after RoPE.

    both: keys and values as one array (see `attend`), where they are views of it.
    """

    q: mx.array
    k: mx.array
    v: mx.array
    both: mx.array | None = None


class Block(nn.Module):
    """One transformer layer: pre-normed attention and SwiGLU feed-forward, with residuals."""

    # Matrices over the same input become one: fewer launches, and exactly the same rows.
    joins = True

    def __init__(self, config: LlamaConfig, weights: Weights, index: int, rope: Rope) -> None:
        super().__init__()
        self.head_dim, self.heads, self.kv_heads = config.head_dim, config.heads, config.kv_heads
        self.turning = config.heads + config.kv_heads  # by their position; values do not
        self.scale = config.head_dim**-0.5
        self.rope = rope
        prefix, eps = f"blk.{index}", config.norm_eps
        self.attention_norm = weights.norm(f"{prefix}.attn_norm", eps=eps)
        names = [f"{prefix}.attn_{name}" for name in "qkv"]
        self.inputs = weights.joined(names, join=self.joins)
        self.output = weights.linear(f"{prefix}.attn_output")
        self.mlp_norm = weights.norm(f"{prefix}.ffn_norm", eps=eps)
        names = [f"{prefix}.ffn_{name}" for name in ("gate", "up")]
        self.gate_up = weights.joined(names, join=self.joins)
        self.down = weights.linear(f"{prefix}.ffn_down")
        self._swiglu = _fused_swiglu if on_gpu() else _swiglu

    def __call__(self, x: mx.array, cache: AttendingCache | None) -> mx.array:
        """x [B, L, hidden] through the layer, appending to `cache`."""
        q, k, v, both = self.attention_inputs(x, 0 if cache is None else cache.offset)
        seen = attend(q, k, v, cache=cache, scale=self.scale, both=both)  # [B, Hq, L, D]
        return self.feed_forward(self.attention_output(x, seen))

    def attention_inputs(self, x: mx.array, offset: int) -> AttentionInputs:
        """Of x [B, L, hidden], whose first token stands at position `offset`."""
        products = self["inputs"](self["attention_norm"](x))
        if len(products) == 1 and x.shape[0] == x.shape[1] == 1:
            return self._of_one_token(products[0], offset)
        heads = [mx.unflatten(rows, -1, (-1, self.head_dim)).swapaxes(1, 2) for rows in products]
        if heads[0].shape[1] == self.heads:
            q, k, v = heads if len(heads) == 3 else (heads[0], *mx.split(heads[1], 2, axis=1))
            return AttentionInputs(self.rope(q, offset=offset), self.rope(k, offset=offset), v)
        turning, v = heads if len(heads) == 2 else mx.split(heads[0], [self.turning], axis=1)
        q, k = mx.split(self.rope(turning, offset=offset), [self.heads], axis=1)
        return AttentionInputs(q, k, v)

    def _of_one_token(self, rows: mx.array, offset: int) -> AttentionInputs:
        """The same where q, k and v are one product: one launch, after which they stay together."""
        every = rows.reshape(-1, 1, 1, self.head_dim)
        q, both = mx.split(self.rope.leading(every, self.turning, offset=offset), [self.heads])
        both = both.reshape(2, self.kv_heads, 1, self.head_dim)
        k, v = mx.split(both, 2)
        return AttentionInputs(q.swapaxes(0, 1), k, v, both)

    def attention_output(self, x: mx.array, seen: mx.array) -> mx.array:
        """x and what its heads have seen [B, Hq, L, D]."""
        added: mx.array = x + self["output"](seen.swapaxes(1, 2).flatten(2))
        return added

    def feed_forward(self, x: mx.array) -> mx.array:
        """x + down(silu(gate(n)) * up(n)) with n = norm(x)."""
        products = self["gate_up"](self["mlp_norm"](x))
        gate, up = products if len(products) == 2 else mx.split(products[0], 2, axis=-1)
        added: mx.array = x + self["down"](self._swiglu(gate, up))
        return added


def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    return gate * mx.sigmoid(gate) * up


# One launch. On the CPU MLX would need a compiler for it, and plain MLX is the oracle there.
_fused_swiglu: Callable[[mx.array, mx.array], mx.array] = mx.compile(_swiglu, shapeless=True)


class Model(nn.Module):
    """Token ids -> logits. Fits mlx-lm's generation loop (`layers`, `make_cache`)."""

    # Weights that plain MLX computes, slowly, where kernels were asked for.
    reference_weights = 0

    def __init__(
        self,
        config: LlamaConfig,
        weights: Weights,
        block: Callable[[LlamaConfig, Weights, int, Rope], Block] = Block,
    ) -> None:
        """Take the network's tensors, all there and well shaped."""
        super().__init__()
        self.config = config
        self.embedding = weights.embedding("token_embd")
        self.rope = _make_rope(config, weights)
        self.layers = [block(config, weights, index, self.rope) for index in range(config.layers)]
        self.norm = weights.norm("output_norm", eps=config.norm_eps)
        if "output.weight" in weights:
            self.output = weights.linear("output")

    @property
    def shape(self) -> ModelShape:
        """What a cache needs to know."""
        return self.config.shape

    @property
    def rotations(self) -> list[Rotation | None]:
        """What each layer's rope does to queries and keys."""
        return [Rotation(periods=self.rope.periods, traditional=True)] * self.config.layers

    @property
    def vocabulary(self) -> int:
        """How many token ids the network knows."""
        return int(self.embedding.as_linear.weight.shape[0])

    @property
    def head(self) -> Projection:
        """States -> logits; the embedding's own table where the file has no other."""
        return self.output if "output" in self else self.embedding.as_linear

    def make_cache(self) -> list[TwoTierKVCache]:
        """An empty default cache, one per layer (mlx-lm calls this)."""
        return make_prompt_cache(self, CacheConfig())

    def __call__(self, ids: mx.array, cache: Sequence[AttendingCache] | None = None) -> mx.array:
        """Token ids [B, L] -> logits [B, L, vocabulary], appending to `cache`."""
        return self.logits(self.hidden(ids, cache))

    def hidden(self, ids: mx.array, cache: Sequence[AttendingCache] | None = None) -> mx.array:
        """Token ids [B, L] -> normed states [B, L, hidden], appending to `cache`.

        Raises EmberError for ids outside the vocabulary.
        """
        x = self.through_layers(self.embed(ids), cache or [None] * len(self.layers))
        normed: mx.array = self.norm(x)
        return normed

    def embed(self, ids: mx.array) -> mx.array:
        """Token ids [B, L] -> vectors [B, L, hidden]."""
        if on_gpu() and ids.shape[-1] == 1:
            # One id may still be on its way: it is kept inside the table, but not waited for.
            return self.embedding(mx.clip(ids, 0, self.vocabulary - 1))
        found = np.asarray(ids)
        if found.size and not 0 <= found.min() <= found.max() < self.vocabulary:
            raise EmberError(
                f"got token ids {found.min()} to {found.max()}, expected 0 to {self.vocabulary - 1}"
            )
        return self.embedding(ids)

    def through_layers(self, x: mx.array, caches: Sequence[AttendingCache | None]) -> mx.array:
        """x [B, L, hidden] through all layers, appending to their caches."""
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, cache)
        return x

    def logits(self, hidden: mx.array) -> mx.array:
        """States [..., hidden] -> logits [..., vocabulary]."""
        return self.head(hidden)


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
