"""Times mlx-lm's own Llama and cache, given the very weights that ember loads."""

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from app.bench.engines.case import WARM_UP, Case, Measurement, MlxLmSetting
from app.bench.engines.queued import QueuedTokens
from app.bench.engines.timing import time_case
from app.rss import peak_rss
from kvcache import EmberError
from kvcache.config import on_gpu
from models import load
from models.network.layers import Projection, QuantizedLinear
from models.network.llama import Model

_SMALLEST_RING = 128


def measure(cases: Sequence[Case]) -> Iterator[Measurement | None]:
    """Fill the cache to the cases' depth, then read and generate.

    None for groups that the model's heads are not made of.
    """
    ours = load(cases[0].model).model
    for case in cases:
        assert isinstance(case.setting, MlxLmSetting)
        group = case.setting.group_size
        fits = not group or ours.config.head_dim % group == 0
        yield _measure(case, case.setting, ours) if fits else None


class Run:
    """mlx-lm's network over our weights, with its own caches.

    queues: generate as on a GPU, with one wait a token.
    """

    def __init__(
        self, case: Case, setting: MlxLmSetting, ours: Model, *, queues: bool = False
    ) -> None:
        self._case, self._setting, self._layers = case, setting, len(ours.layers)
        self._vocabulary, self._queues = ours.vocabulary, queues
        self._model = _as_mlx_lm(ours, getattr(mx, setting.dtype))
        self._queued: QueuedTokens | None = None
        self._logits = mx.zeros((case.batch, ours.vocabulary))
        self.forget()

    def forget(self) -> None:
        """Empty the caches."""
        self.cache = [_cache(self._case, self._setting) for _ in range(self._layers)]
        self._queued = None

    def read(self, start: int, count: int) -> None:
        """Prompt tokens from position `start` on."""
        ids, step = mx.array(self._case.rows(start, count, self._vocabulary)), self._step
        for at in range(0, count, step):
            self._logits = self._model(ids[:, at : at + step], self.cache)[:, -1]
            mx.eval([layer.state for layer in self.cache])
        mx.eval(self._logits)
        self._queued = None

    def advance(self) -> None:
        """The most likely token of each row."""
        first = mx.argmax(self._logits, axis=-1)  # [B]
        if self._queues:
            self._queued = self._queued or QueuedTokens(self._queue, first)
            self._queued.advance()
            return
        self._logits = self._model(first[:, None], self.cache)[:, -1]
        mx.eval(self._logits)

    @property
    def held_bytes(self) -> int:
        """Of the tokens held."""
        return sum(_held_bytes(layer) for layer in self.cache)

    @property
    def _step(self) -> int:
        return self._setting.prefill_step_size

    def _queue(self, token: mx.array) -> tuple[mx.array, list[mx.array]]:
        """One more token of each row; its writes are read by itself, so that none is left."""
        return mx.argmax(self._model(token[:, None], self.cache)[:, -1], axis=-1), []


def _measure(case: Case, setting: MlxLmSetting, ours: Model) -> Measurement:
    run = Run(case, setting, ours, queues=on_gpu())
    run.read(0, min(case.pp, WARM_UP))
    run.forget()
    pp_s, token_s = time_case(case, run.read, run.advance)
    return Measurement(
        backend="gpu" if on_gpu() else "mlx-cpu",
        threads=0,
        pp_s=pp_s,
        token_s=token_s,
        kv_bytes=run.held_bytes,
        peak_rss_bytes=peak_rss(),
    )


def rotating_size(case: Case) -> int:
    """Tokens that a RotatingKVCache holds: half of the prompt, so that it does rotate."""
    return max(_SMALLEST_RING, (case.depth + case.pp) // 2)


def _cache(case: Case, setting: MlxLmSetting) -> Any:
    """mlx-lm's own cache of one layer, by its class's name."""
    from mlx_lm.models.cache import KVCache, QuantizedKVCache, RotatingKVCache

    match case.kv.split():
        case ["KVCache"]:
            return KVCache()
        case ["QuantizedKVCache", bits]:
            return QuantizedKVCache(group_size=setting.group_size, bits=int(bits))
        case ["RotatingKVCache"]:
            return RotatingKVCache(max_size=rotating_size(case), keep=4)
        case _:
            raise EmberError(f"got {case.kv!r}, expected one of mlx-lm's cache classes")


def _held_bytes(cache: Any) -> int:
    """Of the tokens held, without the room that the cache keeps for more."""
    keys, values = cache.keys, cache.values
    parts = [*keys, *values] if isinstance(keys, tuple) else [keys, values]
    return sum(part[..., : cache.offset, :].nbytes for part in parts)


def _as_mlx_lm(ours: Model, dtype: mx.Dtype) -> nn.Module:
    """mlx-lm's Llama over our weights, with activations of a dtype.

    It reads GGUF's interleaved RoPE as `traditional`. Raises EmberError for another network.
    """
    if others := ours.config.named():
        raise EmberError(
            f"mlx-lm is compared with Llama's network only, not with {ours.config.architecture}'s "
            f"({', '.join(others)}); measure without --peers"
        )
    theirs = _made(ours)
    inner = theirs.model
    embedding = ours.embedding.as_linear
    inner.embed_tokens = _embedding(embedding, dtype)
    if "output" in ours:
        theirs.lm_head = _linear(ours.output)
    inner.norm = _norm(ours.norm, dtype)
    for block, layer in zip(ours.layers, inner.layers, strict=True):
        layer.input_layernorm = _norm(block.attention_norm, dtype)
        layer.post_attention_layernorm = _norm(block.mlp_norm, dtype)
        attention, mlp = layer.self_attn, layer.mlp
        q, k, v = map(_linear, block.inputs.matrices())
        attention.q_proj, attention.k_proj, attention.v_proj = q, k, v
        attention.o_proj = _linear(block.output)
        mlp.gate_proj, mlp.up_proj = map(_linear, block.gate_up.matrices())
        mlp.down_proj = _linear(block.down)
    return theirs


def _made(ours: Model) -> nn.Module:
    """mlx-lm's Llama in the shape of ours, with weights of its own."""
    from mlx_lm.models import llama

    config = ours.config
    return llama.Model(
        llama.ModelArgs(
            model_type="llama",
            hidden_size=config.hidden,
            num_hidden_layers=config.layers,
            intermediate_size=config.ffn,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm_eps,
            vocab_size=ours.vocabulary,
            rope_theta=config.rope_base,
            rope_traditional=True,
            tie_word_embeddings="output" not in ours,
        )
    )


def _linear(layer: Projection) -> nn.Module:
    if not isinstance(layer, QuantizedLinear):
        return layer
    linear = nn.QuantizedLinear(
        32, 1, bias=False, group_size=layer.group_size, bits=layer.weight_bits
    )
    linear.weight, linear.scales, linear.biases = layer.weight, layer.scales, layer.biases
    return linear


def _norm(norm: nn.RMSNorm, dtype: mx.Dtype) -> nn.RMSNorm:
    made = nn.RMSNorm(1, eps=norm.eps)
    made.weight = norm.weight.astype(dtype)
    return made


def _embedding(layer: Projection, dtype: mx.Dtype) -> nn.Module:
    if not isinstance(layer, QuantizedLinear):
        table = nn.Embedding(1, 32)
        table.weight = layer.weight.astype(dtype)
        return table
    table = nn.QuantizedEmbedding(1, 32, group_size=layer.group_size, bits=layer.weight_bits)
    # Its lookup gives the scales' dtype, which then spreads to every activation: float16, as in
    # the file, on a GPU.
    table.weight = layer.weight
    table.scales, table.biases = layer.scales.astype(dtype), layer.biases.astype(dtype)
    return table
