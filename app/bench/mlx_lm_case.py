"""Times mlx-lm's own Llama and cache, given the very weights that ember loads."""

import mlx.core as mx
import mlx.nn as nn

from app.bench.case import Case, Measurement
from app.bench.timing import time_case
from app.report import peak_rss
from models import load
from models.layers import QuantizedLinear
from models.llama import Model
from models.ops import Projection

_STEP = 512


def measure(case: Case) -> Measurement:
    """Fill the cache to the case's depth, then read and generate."""
    from mlx_lm.models.cache import make_prompt_cache

    ours = load(case.model).model
    model = _as_mlx_lm(ours)
    cache = make_prompt_cache(model)

    logits = mx.zeros((1, ours.vocabulary))

    def read(start: int, count: int) -> None:
        nonlocal logits
        ids = case.tokens(start, count, ours.vocabulary)
        for at in range(0, count, _STEP):
            logits = model(mx.array([ids[at : at + _STEP]]), cache)[:, -1]
            mx.eval([layer.state for layer in cache])
        mx.eval(logits)

    def advance() -> None:
        nonlocal logits
        token = mx.argmax(logits, axis=-1)  # [1]
        logits = model(token[None], cache)[:, -1]
        mx.eval(logits)

    pp_s, token_s = time_case(case, read, advance)
    held = sum(2 * layer.keys[:, :, : layer.offset].nbytes for layer in cache)
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    return Measurement(
        backend="gpu" if on_gpu else "mlx-cpu",
        threads=0,
        pp_s=pp_s,
        token_s=token_s,
        kv_bytes=held,
        peak_rss_bytes=peak_rss(),
    )


def _as_mlx_lm(ours: Model) -> nn.Module:
    """mlx-lm's Llama over our weights; it reads GGUF's interleaved RoPE as `traditional`."""
    from mlx_lm.models import llama

    config = ours.config
    theirs = llama.Model(
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
    inner = theirs.model
    embedding = ours.embedding.as_linear
    inner.embed_tokens = _embedding(embedding)
    if "output" in ours:
        theirs.lm_head = _linear(ours.output)
    inner.norm = ours.norm
    for block, layer in zip(ours.layers, inner.layers, strict=True):
        layer.input_layernorm, layer.post_attention_layernorm = block.attention_norm, block.mlp_norm
        attention, mlp = layer.self_attn, layer.mlp
        attention.q_proj, attention.k_proj = _linear(block.q), _linear(block.k)
        attention.v_proj, attention.o_proj = _linear(block.v), _linear(block.output)
        mlp.gate_proj, mlp.up_proj = _linear(block.gate), _linear(block.up)
        mlp.down_proj = _linear(block.down)
    return theirs


def _linear(layer: Projection) -> nn.Module:
    if not isinstance(layer, QuantizedLinear):
        return layer
    linear = nn.QuantizedLinear(
        32, 1, bias=False, group_size=layer.group_size, bits=layer.weight_bits
    )
    linear.weight, linear.scales, linear.biases = layer.weight, layer.scales, layer.biases
    return linear


def _embedding(layer: Projection) -> nn.Module:
    if not isinstance(layer, QuantizedLinear):
        table = nn.Embedding(1, 32)
        table.weight = layer.weight
        return table
    table = nn.QuantizedEmbedding(1, 32, group_size=layer.group_size, bits=layer.weight_bits)
    # Its lookup gives the scales' dtype, which then spreads to every activation.
    table.weight = layer.weight
    table.scales, table.biases = layer.scales.astype(mx.float32), layer.biases.astype(mx.float32)
    return table
