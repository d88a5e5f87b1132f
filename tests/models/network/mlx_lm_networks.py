"""mlx-lm's own networks with the weights of the tiny files.

Where mlx-lm's checkpoints differ from GGUF files, the tensors are turned back: rows of
queries and keys that rope pairs as (i, i + D / 2), Gemma's norms without their 1.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from tests.architectures import Array, Shape, weights
from tests.tiny_files import SEED, TINY, WINDOW


def _long_rope(name: str, which: str, span: int) -> dict[str, Any]:
    """mlx-lm always takes the long factors: given as those, the ones that are in use.

    A context so long that its formula gives the files' attention factor of 1.25.
    """
    factors = list(TINY[name].vectors[f"rope_factors_{which}.weight"])
    return {
        "rope_scaling": {"type": "longrope", "long_factor": factors, "short_factor": factors},
        "original_max_position_embeddings": span,
        "max_position_embeddings": span ** (1.25**2),
    }


# What the arguments of a network say beside its dimensions.
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
_MINISTRAL = {**_YARN, "rope_theta": 10000.0, "beta_fast": 8.0, "beta_slow": 0.5}
_MINISTRAL |= {"llama_4_scaling_beta": 0.375}
_GEMMA3 = {"rope_theta": 1000000.0, "sliding_window": 37, "query_pre_attn_scalar": 256}
_MLX_LM: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-tied-biases": ("llama", {"attention_bias": True}),
    "llama-3": (
        "llama",
        {
            "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 256,
            },
        },
    ),
    "llama-linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    # An mscale that gives the file's attention factor of 1.25.
    "llama-yarn": (
        "llama",
        {"rope_scaling": {**_YARN, "mscale": 1.25 + 0.25 / (0.1 * np.log(4.0))}},
    ),
    "mistral3": ("ministral3", {"rope_parameters": {**_MINISTRAL, "mscale_all_dim": 0.25}}),
    "mistral3-attention-factor": ("ministral3", {"rope_parameters": _MINISTRAL}),
    "mistral3-plain": ("llama", {}),
    "qwen2": ("qwen2", {"rope_theta": 1000000.0}),
    "qwen3": ("qwen3", {"rope_theta": 1000000.0}),
    "qwen3-yarn": ("qwen3", {"rope_theta": 1000000.0, "rope_scaling": _YARN}),
    "gemma3": ("gemma3_text", _GEMMA3),
    "gemma3-linear": (
        "gemma3_text",
        {
            **_GEMMA3,
            "query_pre_attn_scalar": 64,
            "rope_local_base_freq": 20000.0,
            "sliding_window_pattern": 3,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    "gemma3-27b": ("gemma3_text", {**_GEMMA3, "query_pre_attn_scalar": 32}),
    "gemma3-full": (
        "gemma3_text",
        {**_GEMMA3, "query_pre_attn_scalar": 64, "sliding_window_pattern": 1},
    ),
    "phi3": ("phi3", {"partial_rotary_factor": 0.75}),
    "phi3-short": ("phi3", _long_rope("phi3-short", "short", WINDOW)),
    "phi3-long": (
        "phi3",
        {**_long_rope("phi3-long", "long", 128), "partial_rotary_factor": 0.75},
    ),
    "smollm3": ("smollm3", {"rope_theta": 50000.0}),
    "granite": (
        "granite",
        {
            "logits_scaling": 3.0,
            "attention_multiplier": 0.078125,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.375,
            "attention_bias": False,
            "mlp_bias": False,
        },
    ),
    "olmo2": ("olmo2", {"rope_theta": 500000.0}),
    "olmo2-window": (
        "olmo3",
        {
            "rope_theta": 500000.0,
            "rope_scaling": _YARN,
            "sliding_window": 37,
            "layer_types": [
                f"{kind}_attention" for kind in ("sliding", "sliding", "full", "sliding", "full")
            ],
        },
    ),
}
_INTERLEAVED = ("llama", "mistral3", "smollm3", "granite")
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output": "lm_head",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_qkv": "self_attn.qkv_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_OTHER_NAMES = {
    "gemma3": {"ffn_norm": "pre_feedforward_layernorm"},
    "phi3": {"ffn_up": "mlp.gate_up_proj"},
}

NETWORKS = tuple(_MLX_LM)


def mlx_lm_logits(name: str, ids: list[int]) -> np.ndarray:
    """[L, vocabulary] of the ids, in one piece, by the network of a tiny file."""
    network, table = network_of(name, TINY[name])
    batch, own = mx.array([ids]), {}
    if TINY[name].architecture == "gemma3":
        # mlx-lm rounds the embeddings' scale to bfloat16, llama.cpp does not.
        scale = TINY[name].width ** 0.5
        rounded = mx.array(scale, mx.bfloat16).astype(mx.float32)
        own = {"input_embeddings": table[batch] * (scale / rounded)}
    logits: mx.array = network(batch, **own)
    return np.array(logits[0])


def network_of(name: str, shape: Shape) -> tuple[nn.Module, mx.array]:
    """mlx-lm's network with the weights of a file of this shape, and its embeddings.

    name: of the tiny file that is alike but for its sizes.
    """
    module, more = _MLX_LM[name]
    found = import_module(f"mlx_lm.models.{module}")
    arguments = {**_arguments(shape), "model_type": module, **more}
    network: nn.Module = found.Model(found.ModelArgs.from_dict(arguments))
    tensors = {key: mx.array(value) for key, value in _tensors(shape)}
    if shape.architecture == "gemma3":
        network.sanitize(tensors)  # sees from the tensors that the output is tied
    network.load_weights(list(tensors.items()), strict=True)
    return network, tensors["model.embed_tokens.weight"]


def _arguments(shape: Shape) -> dict[str, Any]:
    return {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.ffn,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "rms_norm_eps": shape.norm_eps,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context,
        "tie_word_embeddings": shape.tied,
        "rope_theta": 10000.0,
    }


def _tensors(shape: Shape) -> Iterator[tuple[str, Array]]:
    """The file's tensors by the names and in the order that mlx-lm knows."""
    for name, values in weights(shape, SEED).items():
        if name in shape.vectors:
            continue
        *layer, kind, ending = name.removeprefix("blk.").split(".")
        own = _OTHER_NAMES.get(shape.architecture, {}).get(kind, _NAMES[kind])
        if kind in ("attn_q", "attn_k") and shape.architecture in _INTERLEAVED:
            values = _halves(values, shape.head_dim)
        if kind.endswith("norm") and shape.architecture == "gemma3":
            values = values - 1
        yield f"model.layers.{layer[0]}.{own}.{ending}" if layer else f"{own}.{ending}", values


def _halves(rows: Array, dim: int) -> Array:
    """Rows (2i, 2i + 1) of each head -> (i, i + D / 2)."""
    pairs = rows.reshape(-1, dim // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)
