"""The network in plain MLX: grouped-query attention, rope, a gated feed-forward part, RMS norms.

The definition of every architecture (they differ in switches), for any device. Attention
is `kvcache.attend` and nothing else; how keys and values are stored and how a weight is
held is not known here, nor that `cpu_llama` computes the same by kernels of its own.
Source: Touvron et al. (arXiv 2302.13971, 2307.09288); GQA: arXiv 2305.13245.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from kvcache import (
    CacheConfig,
    EmberError,
    ModelShape,
    Rotation,
    RowsKVCache,
    TwoTierKVCache,
    attend,
    make_prompt_cache,
)
from kvcache.attention import AttendingCache
from kvcache.config import on_gpu
from kvcache.given import array
from models.network.config import NetworkConfig
from models.network.layers import Projection
from models.network.rope import Rope, Starts
from models.network.ropes import Ropes
from models.network.switches import Activation, NormOf, Switches
from models.network.weights import Weights

# Dtypes of ids; a set, since to ask MLX takes time for each token.
_WHOLE = frozenset(
    (mx.int8, mx.int16, mx.int32, mx.int64, mx.uint8, mx.uint16, mx.uint32, mx.uint64)
)


class StepStoppedError(EmberError):
    """Whoever asked for a step does not want it any more."""

    def __init__(self) -> None:
        super().__init__("the step was stopped before all layers had run")


class AttentionInputs(NamedTuple):
    """Queries [B, Hq, L, D], keys and values [B, Hkv, L, D] after RoPE.

    both: keys and values as one array (see `attend`), where they are views of it.
    """

    q: mx.array
    k: mx.array
    v: mx.array
    both: mx.array | None = None


class Block(nn.Module):
    """One transformer layer: attention and a gated feed-forward part, with norms and residuals.

    rope: None where it has none. window: tokens that a query sees, itself included; None: all.
    scale: of scores, with what rope multiplies whole heads by.
    Norms that its network has not got are not there.
    """

    def __init__(
        self, config: NetworkConfig, weights: Weights, index: int, rope: Rope | None
    ) -> None:
        super().__init__()
        self.switches = switches = config.switches
        self.head_dim, self.heads, self.kv_heads = config.head_dim, config.heads, config.kv_heads
        self.turning = config.heads + config.kv_heads  # by their position; values do not
        self.rope = rope
        self.window = switches.window_of(index)
        self.scale = switches.attention_scale or config.head_dim**-0.5
        self.query_factors: mx.array | None = None  # where rope multiplies parts of heads
        if rope is not None and rope.magnitude != 1:
            if rope.dims == config.head_dim:
                self.scale *= rope.magnitude**2
            else:
                self.query_factors = rope.factors(config.head_dim).astype(weights.dtype)
        for name, tensor in _norms(switches).items():
            setattr(self, name, weights.norm(f"blk.{index}.{tensor}", eps=config.norm_eps))
        prefix = f"blk.{index}"
        names = [f"{prefix}.attn_{name}" for name in "qkv"]
        self.inputs = weights.joined(names)
        self.output = weights.linear(f"{prefix}.attn_output")
        names = [f"{prefix}.ffn_{name}" for name in ("gate", "up")]
        self.gate_up = weights.joined(names)
        self.down = weights.linear(f"{prefix}.ffn_down")
        gate = _GATES[switches.activation]
        self._gated = _FUSED_GATES[switches.activation] if on_gpu() else gate
        # Gemma's residuals leave float16's range, in a few dimensions that matter little.
        self._overflows = switches.pre_norms and switches.post_norms and weights.dtype == mx.float16
        # Nothing is done to queries and keys but that they turn, in one launch.
        self._only_turns = rope is not None and not (
            switches.query_key_norm or switches.temperature_scale or self.query_factors is not None
        )

    def turn_by(self, rope: Rope | None) -> None:
        """Take another rope of the same dimensions and magnitude."""
        self.rope = rope

    def __call__(self, x: mx.array, cache: AttendingCache | None) -> mx.array:
        """x [B, L, hidden] through the layer, appending to `cache`."""
        q, k, v, both = self.attention_inputs(x, starts_of(cache))
        seen = attend(q, k, v, cache=cache, scale=self.scale, both=both, window=self.window)
        return self.feed_forward(self.attention_output(x, seen))

    def attention_inputs(self, x: mx.array, starts: Starts) -> AttentionInputs:
        """Of x [B, L, hidden], whose first tokens stand at these positions."""
        normed = self._normed("attention_norm", x)
        products = [matrix(normed) for matrix in self["inputs"]]
        if not self._only_turns:
            return self._of_rows(self._apart(products), starts)
        assert self.rope is not None
        if len(products) == 1 and x.shape[0] == x.shape[1] == 1:
            start = starts if isinstance(starts, int) else starts[0]
            return self._of_one_token(self.rope, products[0], start)
        heads = [self._heads(rows) for rows in products]
        if heads[0].shape[1] == self.heads:
            q, k, v = heads if len(heads) == 3 else (heads[0], *mx.split(heads[1], 2, axis=1))
            return AttentionInputs(self.rope(q, starts), self.rope(k, starts), v)
        turning, v = heads if len(heads) == 2 else mx.split(heads[0], [self.turning], axis=1)
        q, k = mx.split(self.rope(turning, starts), [self.heads], axis=1)
        return AttentionInputs(q, k, v)

    def _of_one_token(self, rope: Rope, rows: mx.array, offset: int) -> AttentionInputs:
        """The same where q, k and v are one product: one launch, after which they stay together."""
        every = rows.reshape(-1, 1, 1, self.head_dim)
        q, both = mx.split(rope.leading(every, self.turning, offset=offset), [self.heads])
        both = both.reshape(2, self.kv_heads, 1, self.head_dim)
        k, v = mx.split(both, 2)
        return AttentionInputs(q.swapaxes(0, 1), k, v, both)

    def _of_rows(self, rows: Sequence[mx.array], starts: Starts) -> AttentionInputs:
        """Of q's, k's and v's rows [B, L, columns]: normed, turned, and queries multiplied."""
        q, k, v = rows
        over = self.switches.query_key_norm
        if over is NormOf.ROW:
            q, k = self["query_norm"](q), self["key_norm"](k)
        q, k, v = self._heads(q), self._heads(k), self._heads(v)
        if over is NormOf.HEAD:
            q, k = self["query_norm"](q), self["key_norm"](k)
        if self.rope is not None:
            q, k = self.rope(q, starts), self.rope(k, starts)
        if self.query_factors is not None:
            q = q * self.query_factors
        if self.switches.temperature_scale:
            first = (starts,) if isinstance(starts, int) else starts
            q = q * _temperatures(self.switches, first, q.shape[2], q.dtype)
        return AttentionInputs(q, k, v)

    def _apart(self, products: Sequence[mx.array]) -> Sequence[mx.array]:
        """Rows of q, of k and of v."""
        ends = [self.heads * self.head_dim, self.turning * self.head_dim]
        if len(products) == 1:
            return list(mx.split(products[0], ends, axis=-1))
        if len(products) == 3:
            return products
        first, second = products
        if first.shape[-1] == ends[0]:
            return [first, *mx.split(second, 2, axis=-1)]
        return [*mx.split(first, ends[:1], axis=-1), second]

    def _heads(self, rows: mx.array) -> mx.array:
        """[B, L, H * D] -> [B, H, L, D]"""
        return mx.unflatten(rows, -1, (-1, self.head_dim)).swapaxes(1, 2)

    def attention_output(self, x: mx.array, seen: mx.array) -> mx.array:
        """x and what its heads have seen [B, Hq, L, D]."""
        return self._added(x, "attention_post_norm", self["output"](seen.swapaxes(1, 2).flatten(2)))

    def feed_forward(self, x: mx.array) -> mx.array:
        """x + down(act(gate(n)) * up(n)) with n = norm(x)."""
        normed = self._normed("mlp_norm", x)
        products = [matrix(normed) for matrix in self["gate_up"]]
        gate, up = products if len(products) == 2 else mx.split(products[0], 2, axis=-1)
        return self._added(x, "mlp_post_norm", self["down"](self._gated(gate, up)))

    def _normed(self, name: str, x: mx.array) -> mx.array:
        normed: mx.array = self[name](x) if self.switches.pre_norms else x
        return normed

    def _added(self, x: mx.array, name: str, more: mx.array) -> mx.array:
        if self.switches.post_norms:
            more = self[name](more)
        if self.switches.residual_scale != 1:
            more = more * self.switches.residual_scale
        if self._overflows:
            return _fused_clipped_sum(x, more) if on_gpu() else _clipped_sum(x, more)
        return x + more


def starts_of(cache: AttendingCache | None) -> Starts:
    """Where the tokens stand that a cache takes next."""
    if isinstance(cache, RowsKVCache):
        return cache.positions
    return 0 if cache is None else cache.offset


def _norms(switches: Switches) -> dict[str, str]:
    """The norms of a layer, and their names in the file."""
    found = dict[str, str]()
    if switches.pre_norms:
        found |= {"attention_norm": "attn_norm", "mlp_norm": "ffn_norm"}
    if switches.post_norms:
        found |= {"attention_post_norm": "post_attention_norm", "mlp_post_norm": "post_ffw_norm"}
    if switches.query_key_norm:
        found |= {"query_norm": "attn_q_norm", "key_norm": "attn_k_norm"}
    return found


# All layers ask for the same, one after the other.
@lru_cache(maxsize=8)
def _temperatures(
    switches: Switches, starts: tuple[int, ...], length: int, dtype: mx.Dtype
) -> mx.array:
    """[B, 1, L, 1]: factors of queries of rows that begin at these positions, or all at one."""
    positions = np.array(starts)[:, None, None, None] + np.arange(length)[:, None]
    spans = (positions.clip(0) // switches.temperature_span).astype(np.float64)
    factors = 1 + switches.temperature_scale * np.log1p(spans)
    return mx.array(factors.astype(np.float32)).astype(dtype)


def _clipped_sum(x: mx.array, more: mx.array) -> mx.array:
    """x + more, float16, kept inside its range."""
    most = mx.finfo(mx.float16).max
    return mx.clip(x.astype(mx.float32) + more.astype(mx.float32), -most, most).astype(mx.float16)


def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    return gate * mx.sigmoid(gate) * up


def _geglu(gate: mx.array, up: mx.array) -> mx.array:
    """Of 0.5 * (1 + tanh(z)), which is sigmoid(2 * z); as flat as one launch needs it."""
    twice = math.sqrt(8 / math.pi)
    z = twice * gate + (twice * 0.044715 * gate) * (gate * gate)
    return gate * mx.sigmoid(z) * up


_GATES: dict[Activation, Callable[[mx.array, mx.array], mx.array]] = {
    Activation.SILU: _swiglu,
    Activation.GELU_TANH: _geglu,
}
# One launch. On the CPU MLX would need a compiler for it, and plain MLX is the oracle there.
_FUSED_GATES = {name: mx.compile(gate, shapeless=True) for name, gate in _GATES.items()}
_fused_clipped_sum = mx.compile(_clipped_sum, shapeless=True)


class Model(nn.Module):
    """Token ids -> logits. Fits mlx-lm's generation loop (`layers`, `make_cache`)."""

    def __init__(
        self,
        config: NetworkConfig,
        weights: Weights,
        block: Callable[[NetworkConfig, Weights, int, Rope | None], Block] = Block,
    ) -> None:
        """Take the network's tensors, all there and well shaped."""
        super().__init__()
        self.config = config
        self.embedding = weights.linear("token_embd")
        self._ropes = ropes = Ropes(config, weights)
        self.context = context = config.shape.context
        self.layers = [
            block(config, weights, index, ropes.of(index, context))
            for index in range(config.layers)
        ]
        self.norm = weights.norm("output_norm", eps=config.norm_eps)
        if config.switches.logit_divisor != 1:
            self.norm.weight = self.norm.weight / config.switches.logit_divisor
        if "output.weight" in weights:
            self.output = weights.linear("output")

    @property
    def shape(self) -> ModelShape:
        """What a cache needs to know."""
        return self.config.shape

    @property
    def rotations(self) -> Sequence[Rotation | None]:
        """What rope does to queries and keys, of each layer; None where it has none."""
        return [layer.rope.rotation if layer.rope else None for layer in self.layers]

    @property
    def contexts(self) -> tuple[int, ...]:
        """The longest context of each way to turn that `set_context` chooses from, all last."""
        return self._ropes.contexts

    @property
    def vocabulary(self) -> int:
        """How many token ids the network knows."""
        return self.embedding.rows

    @property
    def head(self) -> Projection:
        """States -> logits; the embedding's own table where the file has no other."""
        return self.output if "output" in self else self.embedding

    def set_context(self, tokens: int) -> None:
        """Turn as in a context of so many tokens; before, as in all that the network has.

        Where a file has factors of rope for short and for long contexts, this chooses, and
        caches that hold tokens of the other choice are of no use.
        """
        self.context = tokens
        for index, layer in enumerate(self.layers):
            if (rope := self._ropes.of(index, tokens)) is not layer.rope:
                layer.turn_by(rope)

    def make_cache(self) -> list[TwoTierKVCache]:
        """An empty default cache, one per layer (mlx-lm calls this, with drafts too)."""
        return make_prompt_cache(self, CacheConfig(slack=16))

    def __call__(self, ids: mx.array, cache: Sequence[AttendingCache] | None = None) -> mx.array:
        """Token ids [B, L] -> logits [B, L, vocabulary], appending to `cache`."""
        return self.logits(self.hidden(ids, cache))

    def hidden(
        self,
        ids: mx.array,
        cache: Sequence[AttendingCache] | None = None,
        stopped: Callable[[], bool] | None = None,
    ) -> mx.array:
        """Token ids [B, L] -> normed states [B, L, hidden], appending to `cache`.

        stopped: asked again and again during a step that takes long, where layers are computed
        at once; once it says yes, StepStoppedError is raised, and `cache` holds none of these
        tokens. Raises EmberError for ids outside the vocabulary, or none at all.
        """
        if ids.__class__ is not mx.array:
            ids = array("ids", ids)
        if ids.ndim != 2 or ids.dtype not in _WHOLE:
            raise EmberError(f"got ids: {ids.shape} of {ids.dtype}, expected whole numbers [B, L]")
        caches: Sequence[AttendingCache | None] = cache or [None] * len(self.layers)
        if len(caches) != len(self.layers):
            raise EmberError(
                f"got {len(caches)} caches, expected one for each of {len(self.layers)} layers"
            )
        x = self.through_layers(self.embed(ids), caches, stopped)
        normed: mx.array = self.norm(x)
        return normed

    def embed(self, ids: mx.array) -> mx.array:
        """Token ids [B, L] -> vectors [B, L, hidden]."""
        scale = self.config.switches.embedding_scale
        if on_gpu() and ids.shape[-1] == 1:
            # One id may still be on its way, and is not waited for.
            return self.embedding.look_up(ids, scale)
        found = np.asarray(ids)
        if not found.size:
            raise EmberError(f"got token ids of shape {found.shape}, expected at least one")
        if not 0 <= found.min() <= found.max() < self.vocabulary:
            raise EmberError(
                f"got token ids {found.min()} to {found.max()}, expected 0 to {self.vocabulary - 1}"
            )
        return self.embedding.look_up(ids, scale)

    def through_layers(
        self,
        x: mx.array,
        caches: Sequence[AttendingCache | None],
        stopped: Callable[[], bool] | None = None,  # what MLX computes, it computes later
    ) -> mx.array:
        """x [B, L, hidden] through all layers, appending to their caches; see `hidden`."""
        for layer, cache in zip(self.layers, caches, strict=True):
            x = layer(x, cache)
        return x

    def logits(self, hidden: mx.array) -> mx.array:
        """States [..., hidden] -> logits [..., vocabulary]."""
        return self.capped(self.head(hidden))

    def capped(self, logits: mx.array) -> mx.array:
        """cap * tanh(logits / cap), where the network has a cap."""
        cap = self.config.switches.logit_cap
        return logits if cap is None else cap * mx.tanh(logits / cap)
