"""Random mlx-lm models of which some layers see a window only, or have no rope."""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx_lm.models import (
    cohere2,
    exaone4,
    gemma3,
    gemma3_text,
    gpt_oss,
    llama,
    ministral3,
    olmo3,
    smollm3,
)

WINDOW, HKV, HQ, DIM, VOCABULARY = 13, 2, 6, 32, 101

_SIZES: dict[str, Any] = {
    "hidden_size": HQ * DIM,
    "intermediate_size": 67,
    "num_attention_heads": HQ,
    "num_key_value_heads": HKV,
    "head_dim": DIM,
    "vocab_size": VOCABULARY,
}
_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
_PATTERN: dict[str, Any] = {"sliding_window": WINDOW, "sliding_window_pattern": 2}
_GEMMA: dict[str, Any] = {
    **_SIZES,
    **_PATTERN,
    "model_type": "gemma3_text",
    "num_hidden_layers": 5,
    "query_pre_attn_scalar": 32,
}


def _gemma3() -> Any:
    return gemma3_text.Model(gemma3_text.ModelArgs(**_GEMMA))


def _gemma3_of_7() -> Any:
    return gemma3_text.Model(gemma3_text.ModelArgs(**_GEMMA | {"num_hidden_layers": 7}))


def _gemma3_of_images() -> Any:
    args = gemma3.ModelArgs(model_type="gemma3", text_config=dict(_GEMMA), vocab_size=VOCABULARY)
    return gemma3.Model(args)


def _cohere2() -> Any:
    args = cohere2.ModelArgs(model_type="cohere2", num_hidden_layers=5, **_SIZES, **_PATTERN)
    return cohere2.Model(args)


def _exaone4() -> Any:
    args = exaone4.ModelArgs(
        model_type="exaone4",
        num_hidden_layers=4,
        rms_norm_eps=1e-5,
        max_position_embeddings=999,
        rope_theta=1000.0,
        tie_word_embeddings=True,
        rope_scaling={"rope_type": "default"},
        sliding_window=WINDOW,
        sliding_window_pattern="LG",
        **_SIZES,
    )
    return exaone4.Model(args)


def _gpt_oss() -> Any:
    args = gpt_oss.ModelArgs(
        num_hidden_layers=3,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=WINDOW,
        layer_types=_LAYERS,
        rope_scaling={
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
        },
        **_SIZES,
    )
    return gpt_oss.Model(args)


def _ministral3() -> Any:
    args = ministral3.ModelArgs(
        model_type="ministral3",
        num_hidden_layers=3,
        rms_norm_eps=1e-5,
        layer_types=_LAYERS,
        sliding_window=WINDOW,
        rope_parameters={
            "rope_theta": 1000.0,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 64,
            "rope_type": "default",
        },
        **_SIZES,
    )
    return ministral3.Model(args)


def _olmo3() -> Any:
    args = olmo3.ModelArgs(
        model_type="olmo3",
        num_hidden_layers=5,
        rms_norm_eps=1e-5,
        max_position_embeddings=999,
        sliding_window=WINDOW,
        rope_theta=1000.0,
        **_SIZES,
    )
    return olmo3.Model(args)


def _llama() -> Any:
    args = llama.ModelArgs(
        model_type="llama",
        num_hidden_layers=3,
        rms_norm_eps=1e-5,
        layer_types=_LAYERS,
        sliding_window=WINDOW,
        **_SIZES,
    )
    return llama.Model(args)


def _smollm3() -> Any:
    args = smollm3.ModelArgs(model_type="smollm3", num_hidden_layers=5, rms_norm_eps=1e-5, **_SIZES)
    return smollm3.Model(args)


MODELS: dict[str, Callable[[], Any]] = {
    "gemma3": _gemma3,
    "gemma3 of images": _gemma3_of_images,
    "cohere2": _cohere2,
    "exaone4": _exaone4,
    "gpt-oss": _gpt_oss,
    "ministral3": _ministral3,
    "olmo3": _olmo3,
    "llama": _llama,
    "smollm3": _smollm3,
}


_OTHERS = {"gemma3 of 7": _gemma3_of_7}


def make_mixed(name: str) -> Any:
    """A model, its float32 weights from a fixed seed."""
    mx.random.seed(12)
    model = (MODELS | _OTHERS)[name]()
    mx.eval(model.parameters())
    return model
