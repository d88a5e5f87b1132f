"""Times mlx-lm's own Llama and cache over a file's weights, as MLX quantizes them.

MLX has no products over a file's blocks. Q4_1 and Q5_1 are as in the file; other matrices are
decoded and quantized anew, to as many bits as their type has codes of, in groups of 64
(mlx-lm's default) where rows are made of those.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from app.bench.engines.case import WARM_UP, Case, Measurement, MlxLmSetting
from app.bench.engines.queued import QueuedTokens
from app.bench.engines.timing import time_case
from app.rss import peak_rss
from kvcache import EmberError
from kvcache.config import on_gpu
from models import GGUFFile, decode
from models.finding.source import locate
from models.gguf.tensor import Tensor
from models.gpu import affine
from models.network.config import NetworkConfig
from models.network.shapes import tensors_to_read

_SMALLEST_RING = 128


def measure(cases: Sequence[Case]) -> Iterator[Measurement | None]:
    """Fill the cache to the cases' depth, then read and generate.

    None for groups that the model's heads are not made of.
    """
    weights = read_weights(cases[0].model)
    for case in cases:
        assert isinstance(case.setting, MlxLmSetting)
        group = case.setting.group_size
        fits = not group or weights.config.head_dim % group == 0
        yield _measure(case, case.setting, weights) if fits else None


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What a file holds, as MLX takes it, by the file's names without ".weight".

    arrays: float16 or float32 vectors and matrices; or codes, scales and biases of
    `mx.quantize`. bits: of those that are quantized, with their groups.
    """

    config: NetworkConfig
    arrays: dict[str, tuple[mx.array, ...]]
    bits: dict[str, tuple[int, int]]

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding's table."""
        return len(self.arrays["token_embd"][0])


def read_weights(model: str) -> Weights:
    """Of a Llama. Raises EmberError for another network."""
    arrays, bits = dict[str, tuple[mx.array, ...]](), dict[str, tuple[int, int]]()
    with GGUFFile(locate(model)) as file:
        config = NetworkConfig.from_metadata(file.metadata)
        if others := config.named():
            raise EmberError(
                f"mlx-lm is compared with Llama's network only, not with {config.architecture}'s "
                f"({', '.join(others)}); measure without --peers"
            )
        for name, info in tensors_to_read(file, config).items():
            tensor, stem = file.tensor(info), name.removesuffix(".weight")
            if tensor.type in affine.BITS:
                exact = affine.AffineLinear([tensor], None, mx.float16)
                arrays[stem] = exact.weight, exact.scales, exact.biases
                bits[stem] = affine.BITS[tensor.type], affine.GROUP
            elif tensor.type.block_size > 1:
                bits[stem] = packing = _packing(tensor)
                arrays[stem] = _quantized(mx.array(decode(tensor)), *packing)
            else:
                arrays[stem] = (mx.array(decode(tensor)),)
            mx.eval(arrays[stem])
    return Weights(config=config, arrays=arrays, bits=bits)


def _packing(tensor: Tensor) -> tuple[int, int]:
    """Bits, which the names of types have as their first digit, and numbers of a group."""
    bits = next(int(char) for char in tensor.type.name if char.isdigit())
    return bits, 32 if tensor.columns % 64 else 64


def _quantized(matrix: mx.array, bits: int, group: int) -> tuple[mx.array, ...]:
    return tuple(mx.quantize(matrix.astype(mx.float16), group_size=group, bits=bits))


def unquantized(weights: Weights) -> Weights:
    """The same, float32 matrices in place of those that are quantized."""
    arrays = dict(weights.arrays)
    for name, (bits, group) in weights.bits.items():
        codes, *rest = arrays[name]
        scales, biases = (part.astype(mx.float32) for part in rest)
        matrix = mx.dequantize(codes, scales, biases, group_size=group, bits=bits)
        arrays[name] = (matrix,)
    return Weights(config=weights.config, arrays=arrays, bits={})


class Run:
    """mlx-lm's network and caches over a file's weights.

    queues: generate as on a GPU, with one wait a token.
    """

    def __init__(
        self, case: Case, setting: MlxLmSetting, weights: Weights, *, queues: bool = False
    ) -> None:
        self._case, self._setting, self._layers = case, setting, weights.config.layers
        self._vocabulary, self._queues = weights.vocabulary, queues
        self._model = network(weights, getattr(mx, setting.dtype))
        self._queued: QueuedTokens | None = None
        self._logits = mx.zeros((case.batch, weights.vocabulary))
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


def _measure(case: Case, setting: MlxLmSetting, weights: Weights) -> Measurement:
    run = Run(case, setting, weights, queues=on_gpu())
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


def network(weights: Weights, dtype: mx.Dtype) -> nn.Module:
    """mlx-lm's Llama over a file's weights, with activations of a dtype.

    It reads GGUF's interleaved RoPE as `traditional`.
    """
    theirs = _made(weights)
    inner = theirs.model
    inner.embed_tokens = _embedding(weights, dtype)
    if "output" in weights.arrays:
        theirs.lm_head = _linear(weights, "output", dtype)
    inner.norm = _norm(weights, "output_norm", dtype)
    for index, layer in enumerate(inner.layers):
        prefix, attention, mlp = f"blk.{index}", layer.self_attn, layer.mlp
        layer.input_layernorm = _norm(weights, f"{prefix}.attn_norm", dtype)
        layer.post_attention_layernorm = _norm(weights, f"{prefix}.ffn_norm", dtype)
        for part in ("q", "k", "v"):
            attention[f"{part}_proj"] = _linear(weights, f"{prefix}.attn_{part}", dtype)
        attention.o_proj = _linear(weights, f"{prefix}.attn_output", dtype)
        for part in ("gate", "up", "down"):
            mlp[f"{part}_proj"] = _linear(weights, f"{prefix}.ffn_{part}", dtype)
    return theirs


def _made(weights: Weights) -> nn.Module:
    """mlx-lm's Llama in the shape of a file's, with weights of its own."""
    from mlx_lm.models import llama

    config = weights.config
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
            vocab_size=weights.vocabulary,
            rope_theta=config.rope_base,
            rope_traditional=True,
            tie_word_embeddings="output" not in weights.arrays,
        )
    )


def _linear(weights: Weights, name: str, dtype: mx.Dtype) -> nn.Module:
    if name not in weights.bits:
        linear = nn.Linear(1, 1, bias=False)
        linear.weight = weights.arrays[name][0].astype(dtype)
        return linear
    bits, group = weights.bits[name]
    quantized = nn.QuantizedLinear(64, 1, bias=False, group_size=group, bits=bits)
    quantized.weight, quantized.scales, quantized.biases = weights.arrays[name]
    return quantized


def _norm(weights: Weights, name: str, dtype: mx.Dtype) -> nn.RMSNorm:
    made = nn.RMSNorm(1, eps=weights.config.norm_eps)
    made.weight = weights.arrays[name][0].astype(dtype)
    return made


def _embedding(weights: Weights, dtype: mx.Dtype) -> nn.Module:
    if "token_embd" not in weights.bits:
        table = nn.Embedding(1, 32)
        table.weight = weights.arrays["token_embd"][0].astype(dtype)
        return table
    bits, group = weights.bits["token_embd"]
    quantized = nn.QuantizedEmbedding(1, 64, group_size=group, bits=bits)
    # Its lookup gives the scales' dtype, which then spreads to every activation.
    codes, scales, biases = weights.arrays["token_embd"]
    quantized.weight = codes
    quantized.scales, quantized.biases = scales.astype(dtype), biases.astype(dtype)
    return quantized
