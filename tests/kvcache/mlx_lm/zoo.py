"""Tiny random models of every language model that mlx-lm has.

A model's sizes are taken by name from one table, `SIZES`, as far as its arguments know the
name; what a module wants besides, and variants of it, stand in `MODELS`.
"""

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx_lm.models
from mlx.utils import tree_flatten

from tests.kvcache.mlx_lm.without_metal import stand_in

VOCABULARY, WINDOW, HQ, HKV, DIM, HIDDEN = 61, 13, 4, 2, 32, 128

_LOCAL = ["sliding_attention", "full_attention"]
_MIXED = ["linear_attention", "full_attention"]
_PLAIN_ROPE = {"rope_theta": 1000.0, "rope_type": "default"}
_YARN = {
    "type": "yarn",
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "mscale": 1.0,
    "mscale_all_dim": 0.5,
}
_MIXED_ROPES = {"sliding_attention": _PLAIN_ROPE, "full_attention": _YARN | _PLAIN_ROPE}

SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "intermediate_size": 44,
    "num_attention_heads": HQ,
    "num_key_value_heads": HKV,
    "head_dim": DIM,
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "rms_norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "norm_eps": 1e-5,
    "max_position_embeddings": 999,
    "rope_theta": 1000.0,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "use_bias": False,
    "use_qkv_bias": False,
    "sliding_window": WINDOW,
    "layer_types": _LOCAL,
    # Experts.
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_top_k": 2,
    "moe_topk": 2,
    "num_shared_experts": 1,
    "n_shared_experts": 1,
    "num_shared_expert": 1,
    "moe_intermediate_size": 36,
    "shared_expert_intermediate_size": 36,
    "moe_shared_expert_intermediate_size": 36,
    "shared_intermediate_size": 36,
    "share_expert_dim": 36,
    "expert_ffn_hidden_size": 36,
    "ffn_hidden_size": 44,
    "first_k_dense_replace": 1,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_layer_freq": 1,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    # Latent attention.
    "kv_lora_rank": 24,
    "q_lora_rank": 28,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 20,
    # Indexers of sparse attention.
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 8,
    # State spaces and linear attention.
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "linear_allow_neg_eigval": True,
    "state_size": 16,
    "ssm_state_size": 16,
    "conv_kernel": 4,
    "use_conv_bias": True,
    "time_step_rank": 8,
    "time_step_limit": (0.001, 100.0),
    "n_groups": 1,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_num_heads": 4,
    "mamba_n_heads": 4,
    "mamba_head_dim": 16,
    "mamba_d_head": 16,
    "mamba_d_ssm": 64,
    "mamba_n_groups": 1,
    "mamba_proj_bias": False,
    "mamba_conv_bias": True,
    "conv_bias": False,
    "conv_L_cache": 3,
    "layer_group_size": 2,
    "group_norm_size": 2,
    # Granite's.
    "logits_scaling": 2.0,
    "attention_multiplier": 0.2,
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.7,
    # GPT's words.
    "n_embd": HIDDEN,
    "n_head": HQ,
    "n_layer": 2,
    "n_positions": 999,
    "n_ctx": 999,
    "n_inner": 44,
}
_MLA = {"num_key_value_heads": HQ}
_MUSE: dict[str, Any] = {
    **SIZES,
    "post_norm_eps": 1e-5,
    "rope_parameters": _PLAIN_ROPE,
    "layer_rope_theta": [1000.0, 0],
    "final_logit_softcapping": 20.0,
    "output_multiplier": 0.2,
    "moe_hidden_size": 64,
    "num_shared_experts": 0,
}
_GEMMA_3N: dict[str, Any] = {
    **SIZES,
    "model_type": "gemma3n_text",
    "num_hidden_layers": 4,
    "layer_types": _LOCAL * 2,
    "num_kv_shared_layers": 2,
    "rope_local_base_freq": 100.0,
    "final_logit_softcapping": 30.0,
    "activation_sparsity_pattern": [0.0] * 4,
    "altup_num_inputs": 2,
    "altup_coef_clip": 120.0,
    "altup_correct_scale": True,
    "altup_active_idx": 0,
    "laurel_rank": 8,
}
_NTK = {"alpha": 10.0, "factor": 1.0, "type": "dynamic"}
_HUNYUAN: dict[str, Any] = {
    "use_mixed_mlp_moe": True,
    "use_qk_norm": True,
    "cla_share_factor": 2,
    "rope_scaling": _NTK,
}
_KDA = {
    "kda_layers": [1],
    "full_attn_layers": [2],
    "num_heads": 4,
    "head_dim": 16,
    "short_conv_kernel_size": 4,
    "gate_lower_bound": -5.0,
}
_LONGCAT: dict[str, Any] = {
    "attention_method": "MLA",
    "zero_expert_type": "identity",
    "zero_expert_num": 1,
    "num_layers": 2,
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
}


def _inside(**changed: Any) -> dict[str, Any]:
    """The sizes of the language model of one that also sees."""
    return {"text_config": {**SIZES, **changed}}


# A module, or a module and a variant of it in brackets: what it wants besides `SIZES`.
MODELS: dict[str, Mapping[str, Any]] = {
    "Klear": {},
    "afm7": {
        "hidden_dim": HIDDEN,
        "num_layers": 3,
        "num_kv_reuse_layers": 1,
        "num_heads": HQ,
        "num_kv_heads": HKV,
    },
    "afmoe": {},
    "apertus": {"post_norm": False, "qk_norm": True},
    "baichuan_m1": {"sliding_window_layers": [0], "conv_window": 2},
    "bailing_hybrid": {"num_hidden_layers": 2},
    "bailing_moe": {},
    "bailing_moe_linear": {},
    "bailing_moe_v3": _MLA,
    "bitnet": {},
    "cohere": {},
    "cohere2": {"sliding_window_pattern": 2},
    "dbrx": {
        "d_model": HIDDEN,
        "n_layers": 2,
        "n_heads": HQ,
        "ffn_config": {"ffn_hidden_size": 36, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": HKV, "clip_qkv": 8, "rope_theta": 1000.0},
    },
    "deepseek": {},
    "deepseek_v2": {**_MLA, "rope_scaling": _YARN},
    "deepseek_v2 (values as long as keys)": {
        **_MLA,
        "v_head_dim": 24,
        "rope_scaling": _YARN,
    },
    "deepseek_v3": _MLA,
    "deepseek_v32": _MLA,
    "deepseek_v41": {"compress_ratios": (0, 4)},
    "dots1": {},
    "ernie4_5": {},
    "ernie4_5_moe": {},
    "exaone": {"num_layers": 2},
    "exaone4": {"sliding_window_pattern": "LG", "rope_scaling": None},
    "exaone_moe": {"is_moe_layer": [False, True]},
    "falcon_h1": {},
    "gear": {"num_hidden_layers": 3, "layer_types": [*_LOCAL, "conv_mixer"]},
    "gemma": {},
    "gemma2": {},
    "gemma3": _inside(model_type="gemma3_text", sliding_window_pattern=2),
    "gemma3_text": {"sliding_window_pattern": 2},
    "gemma3n": {"text_config": _GEMMA_3N},
    "gemma4": _inside(global_head_dim=48, num_kv_shared_layers=0, model_type="gemma4_text"),
    "gemma4_text": {"global_head_dim": 48, "num_kv_shared_layers": 0},
    "gemma4_text (layers that share)": {
        "num_hidden_layers": 4,
        "layer_types": _LOCAL * 2,
        "global_head_dim": 48,
        "num_kv_shared_layers": 2,
    },
    "glm": {},
    "glm4": {"partial_rotary_factor": 0.5},
    "glm4_moe": {"partial_rotary_factor": 0.5, "rope_scaling": None, "use_qk_norm": True},
    "glm4_moe_lite": _MLA,
    "glm_moe_dsa": {**_MLA, "rope_parameters": _PLAIN_ROPE},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neox": {"rotary_emb_base": 1000, "rotary_pct": 0.25},
    "gpt_oss": {"rope_scaling": {**_YARN, "beta_fast": 32.0, "beta_slow": 1.0}},
    "gptj": {"rotary_dim": 16},
    "granite": {},
    "granitemoe": {},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "helium": {},
    "hunyuan": {**_HUNYUAN, "use_cla": False},
    "hunyuan (layers that share)": {**_HUNYUAN, "use_cla": True},
    "hunyuan_v1_dense": {"rope_scaling": _NTK},
    "internlm2": {"bias": False},
    "internlm3": {},
    "iquestloopcoder": {"loop_window_size": WINDOW},
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
    },
    "kimi_k25": _inside(**_MLA),
    "kimi_k3": _inside(
        **_MLA,
        linear_attn_config=_KDA,
        activation_situ_beta=1.0,
        activation_situ_linear_beta=1.0,
        attn_res_block_size=2,
    ),
    "kimi_linear": {**_MLA, "linear_attn_config": _KDA, "model_max_length": 999},
    "kimi_vl": _inside(**_MLA),
    "laguna": {"rope_parameters": _MIXED_ROPES},
    "lfm2": {
        "layer_types": ["conv", "full_attention"],
        "block_dim": HIDDEN,
        "block_multiple_of": 4,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
    },
    "lfm2-vl": _inside(
        model_type="lfm2",
        layer_types=["conv", "full_attention"],
        block_dim=HIDDEN,
        block_multiple_of=4,
        block_ffn_dim_multiplier=1.0,
        block_auto_adjust_ff_dim=False,
    ),
    "lfm2_moe": {
        "layer_types": ["conv", "full_attention"],
        "use_expert_bias": True,
        "num_dense_layers": 1,
    },
    "lille-130m": {"block_size": 999, "n_kv_heads": HKV},
    "llama": {"layer_types": ["full_attention"] * 2},
    "llama (windows)": {},
    "llama (long)": {
        "layer_types": ["full_attention"] * 2,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "llama (yarn)": {"layer_types": ["full_attention"] * 2, "rope_scaling": _YARN},
    "llama (dynamic)": {
        "layer_types": ["full_attention"] * 2,
        "rope_scaling": {"type": "dynamic", "factor": 4.0},
    },
    "llama (interleaved)": {"layer_types": ["full_attention"] * 2, "rope_traditional": True},
    "llama4": _inside(
        model_type="llama4_text",
        num_hidden_layers=4,
        attention_chunk_size=WINDOW,
        floor_scale=16,
        interleave_moe_layer_step=2,
        intermediate_size_mlp=44,
        num_experts_per_tok=1,
        use_qk_norm=True,
        rope_scaling=None,
    ),
    "llama4_text": {"intermediate_size_mlp": 44, "no_rope_layers": [1, 0], "use_qk_norm": True},
    "longcat_flash": _LONGCAT,
    "longcat_flash_ngram": _LONGCAT,
    "mamba": {},
    "mamba2": {"num_heads": 4, "head_dim": 64},
    "mellum": {"rope_parameters": _MIXED_ROPES},
    "mimo": {"num_nextn_predict_layers": 0},
    "mimo_v2_flash": {
        "hybrid_layer_pattern": [0, 1],
        "moe_layer_freq": [0, 0],
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "sliding_window_size": WINDOW,
        "layernorm_epsilon": 1e-5,
        "swa_rope_theta": 100.0,
        "swa_num_attention_heads": HQ,
        "swa_num_key_value_heads": 1,
        "swa_head_dim": 24,
        "swa_v_head_dim": 16,
        "partial_rotary_factor": 1,
    },
    "minicpm": {"dim_model_base": 64, "scale_depth": 1.4, "scale_emb": 2.0},
    "minicpm3": {
        **_MLA,
        "dim_model_base": 64,
        "scale_depth": 1.4,
        "scale_emb": 2.0,
        "rope_scaling": {
            "type": "longrope",
            "original_max_position_embeddings": 64,
            "short_factor": [1.0] * 4,
            "long_factor": [1.1] * 4,
        },
    },
    "minimax": {"rotary_dim": 16},
    "minimax_m3_vl": _inside(
        dense_intermediate_size=44, moe_layer_freq=[0, 1], layer_types=["full_attention"] * 2
    ),
    "minimax_m3_vl (sparse)": _inside(
        dense_intermediate_size=44,
        moe_layer_freq=[0, 1],
        layer_types=["full_attention", "sparse"],
        index_block_size=4,
        index_topk_blocks=2,
    ),
    "ministral3": {
        "rope_parameters": {
            **_PLAIN_ROPE,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 16,
        }
    },
    "mistral3": _inside(
        model_type="ministral3",
        rope_parameters={
            **_PLAIN_ROPE,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 16,
        },
    ),
    "mistral4": {
        **_MLA,
        "rope_parameters": {
            **_PLAIN_ROPE,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 16,
        },
    },
    "mixtral": {},
    "muse_glimmer": _MUSE,
    "muse_spark": {"text_config": _MUSE},
    "nanbeige": {"num_loops": 2},
    "nanochat": {},
    "nemotron": {"hidden_act": "relu2", "partial_rotary_factor": 0.5},
    "nemotron-nas": {
        "num_hidden_layers": 3,
        "block_configs": [
            {
                "attention": {"n_heads_in_group": 2, "no_op": index == 1},
                "ffn": {"ffn_mult": 1.0, "no_op": False},
            }
            for index in range(3)
        ],
    },
    "nemotron_h": {"layer_types": None, "hybrid_override_pattern": ["M", "*", "-"]},
    "olmo": {
        "d_model": HIDDEN,
        "n_layers": 2,
        "n_heads": HQ,
        "mlp_hidden_size": 44,
        "embedding_size": VOCABULARY,
    },
    "olmo2": {},
    "olmo3": {},
    "olmo_hybrid": {"layer_types": _MIXED},
    "olmoe": {},
    "openelm": {
        "num_transformer_layers": 2,
        "model_dim": HIDDEN,
        "ffn_dim_divisor": 4,
        "num_query_heads": [2, 4],
        "num_kv_heads": [1, 2],
        "ffn_multipliers": [0.5, 0.5],
    },
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {},
    "phi3 (long)": {
        "original_max_position_embeddings": 64,
        "rope_scaling": {
            "type": "longrope",
            "original_max_position_embeddings": 64,
            "short_factor": [1.0] * 16,
            "long_factor": [1.0 + index / 10 for index in range(16)],
        },
    },
    "phi3 (partial)": {"partial_rotary_factor": 0.5},
    "phi3small": {
        "hidden_size": 64,
        "vocab_size": 100352,
        "dense_attention_every_n_layers": 2,
        "ff_intermediate_size": 44,
        "gegelu_limit": 20.0,
        "blocksparse_block_size": 32,
        "blocksparse_num_local_blocks": 2,
        "blocksparse_vert_stride": 2,
    },
    "phimoe": {
        "rope_scaling": {
            "short_factor": [1.0] * 16,
            "long_factor": [1.2] * 16,
            "short_mscale": 1.1,
            "long_mscale": 1.2,
        }
    },
    "phixtral": {
        "num_vocab": VOCABULARY,
        "model_dim": HIDDEN,
        "num_heads": HQ,
        "num_layers": 2,
        "rotary_dim": 16,
    },
    "pixtral": _inside(model_type="llama", layer_types=["full_attention"] * 2),
    "plamo": {"n_shared_head": 2},
    "plamo2": {"hidden_size_per_head": DIM, "attention_window_size": WINDOW},
    "plamo3": {"sliding_window_pattern": 2, "rope_local_theta": 100.0},
    "prism_hadamard_qwen35": {
        **_inside(full_attention_interval=2),
        "schema_version": 1,
        "tensor_namespace": "mlx-lm-text",
        "quantization": {"bits": 2, "group_size": 128, "mode": "affine"},
        "modules": [
            {
                "path": "model.layers.1.self_attn.q_proj",
                "embedding": False,
                "dtype": "float16",
                "block": 0,
            }
        ],
    },
    "qwen": {"kv_channels": DIM},
    "qwen2": {},
    "qwen2_moe": {},
    "qwen2_vl": _inside(model_type="qwen2"),
    "qwen3": {},
    "qwen3_5": _inside(full_attention_interval=2),
    "qwen3_5_moe": _inside(full_attention_interval=2),
    "qwen3_moe": {},
    "qwen3_next": {"full_attention_interval": 2, "partial_rotary_factor": 0.5},
    "qwen3_vl": _inside(model_type="qwen3"),
    "qwen3_vl_moe": _inside(model_type="qwen3_moe"),
    "recurrent_gemma": {
        "num_hidden_layers": 2,
        "conv1d_width": 4,
        "logits_soft_cap": 30.0,
        "attention_window_size": WINDOW,
        "block_types": ["recurrent", "attention"],
    },
    "rwkv7": {
        "a_low_rank_dim": 8,
        "v_low_rank_dim": 8,
        "gate_low_rank_dim": 8,
        "decay_low_rank_dim": 8,
    },
    "seed_oss": {},
    "smollm3": {"no_rope_layers": [1, 0]},
    "solar_open": {"partial_rotary_factor": 1.0},
    "spark2_5": {"rope_parameters": _MIXED_ROPES},
    "stablelm": {"partial_rotary_factor": 0.25},
    "starcoder2": {},
    "step3p5": {
        "num_attention_groups": HKV,
        "attention_other_setting": {"num_attention_heads": HQ, "num_attention_groups": HKV},
        "moe_layers_enum": "1",
    },
    "talkie": {},
    "telechat3": {"rope_scaling": _YARN},
    "youtu_llm": _MLA,
}


def modules() -> dict[str, ModuleType]:
    """Every module of mlx-lm that has a language model."""
    every = pkgutil.iter_modules(mlx_lm.models.__path__)
    found = {each.name: _module(each.name) for each in every}
    return {name: module for name, module in found.items() if "Model" in vars(module)}


def make(name: str) -> Any:
    """One of `MODELS`, its float32 weights from a fixed seed, and loud ones."""
    home = name.split(" (")[0]
    module = _module(home)
    given = {**SIZES, "model_type": home, **MODELS[name]}
    known = inspect.signature(module.ModelArgs).parameters
    wanted = {each: value for each, value in given.items() if each in known}
    mx.random.seed(5)
    model = module.Model(module.ModelArgs.from_dict(wanted))
    parameters: Any = tree_flatten(model.parameters())
    model.load_weights([(path, _loud(path, weight)) for path, weight in parameters], strict=False)
    mx.eval(model.parameters())
    return model


def _module(name: str) -> ModuleType:
    # What mlx-lm's OLMo asks for, to be told of a missing package, and never uses.
    sys.modules.setdefault("hf_olmo", ModuleType("hf_olmo"))
    module = importlib.import_module(f"mlx_lm.models.{name}")
    stand_in(module)
    return module


def _loud(path: str, weight: mx.array) -> mx.array:
    """A weight, so that what is attended to is seen in the logits."""
    if weight.dtype == mx.uint8:
        # Four ternary numbers each.
        digits = mx.random.randint(0, 3, (4, *weight.shape))
        return sum((digits[i] << 2 * i for i in range(4)), mx.array(0)).astype(mx.uint8)
    if weight.ndim < 2 or "embed" in path or weight.dtype == mx.uint32:
        return weight
    return weight * 2 if weight.any().item() else mx.random.normal(weight.shape) / 8
