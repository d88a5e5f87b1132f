"""Tiny files of every architecture, and what is asked of them, for truth by llama.cpp.

At least one file for each switch that a network may have. Widths are multiples of Q8_0's
32, all else is odd where an architecture lets it be. Gains were chosen so that each switch
moves log-probabilities well beyond what is tolerated.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from models.gguf.tensor_types import TensorType
from tests.architectures import Shape, random_bits, write_network
from tests.gguf_factory import MetadataItem, sentencepiece_tokenizer

SEED = 16
VOCABULARY = 331
PROMPTS = (7, 40, 300)
# Tokens after a prompt, and of context in all.
ANSWER = 12
WINDOW = 512
_LEAST_ID = 3  # below are <unk>, <s> and </s>


def write_tiny(
    path: Path, name: str, kind: TensorType = TensorType.F32, *, layers: int | None = None
) -> Path:
    """Write the file of this name, or so many layers of it, with its matrices as F32 or Q8_0."""
    tokenizer = sentencepiece_tokenizer(VOCABULARY)
    shape = replace(TINY[name], layers=layers or TINY[name].layers)
    write_network(path, shape, kind=kind, tokenizer_metadata=tokenizer, seed=SEED)
    return path


def prompt(length: int) -> list[int]:
    """So many token ids."""
    bits = random_bits(length, SEED, length)
    return [_LEAST_ID + int(value) % (VOCABULARY - _LEAST_ID) for value in bits]


def _rising(pairs: int, last: float) -> tuple[float, ...]:
    """Factors of rope's pairs from 1 for the fastest to `last` for the slowest."""
    return tuple(np.linspace(1, last, pairs, dtype=np.float32).tolist())


def _llama3(pairs: int, base: float) -> tuple[float, ...]:
    """Llama 3's factors as its converter writes them, for a network of 256 tokens, 8 times that.

    Rounded, because powers differ in the last bits from machine to machine.
    """
    factor, low, high, span = 8.0, 1.0, 4.0, 256
    waves = 2 * np.pi * base ** (np.arange(pairs) / pairs)
    smooth = np.clip((span / waves - low) / (high - low), 0, 1)
    factors = 1 / ((1 - smooth) / factor + smooth)
    return tuple(np.round(factors, 6).tolist())


_YARN: dict[str, MetadataItem] = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
}
_MISTRAL3_KEYS: dict[str, MetadataItem] = {
    **_YARN,
    "rope.dimension_count": 128,
    "rope.scaling.yarn_beta_fast": 8.0,
    "rope.scaling.yarn_beta_slow": 0.5,
    "rope.scaling.yarn_log_multiplier": 0.25,
    "attention.temperature_scale": 0.375,
}
# Gemma's embeddings are scaled by sqrt(width), and are its output too.
_GEMMA3_KEYS: dict[str, MetadataItem] = {
    "rope.freq_base": 1000000.0,
    "attention.sliding_window": 37,
}
_PHI3_FACTORS = {
    "rope_factors_long.weight": _rising(48, 30.0),
    "rope_factors_short.weight": _rising(48, 3.0),
}
_OF_HEADS = {"attn_q_norm": 1.3, "attn_k_norm": 1.3}

_LLAMA = Shape(
    architecture="llama",
    layers=3,
    width=192,
    ffn=224,
    heads=3,
    kv_heads=1,
    head_dim=64,
    vocab=VOCABULARY,
    keys={"rope.dimension_count": 64},
)
_MISTRAL3 = replace(
    _LLAMA,
    architecture="mistral3",
    width=96,
    heads=6,
    kv_heads=2,
    head_dim=128,
    keys=_MISTRAL3_KEYS,
)
_QWEN2 = replace(
    _LLAMA,
    architecture="qwen2",
    width=320,
    ffn=160,
    heads=5,
    biases=("attn_q", "attn_k", "attn_v"),
    keys={"rope.freq_base": 1000000.0},
)
_QWEN3 = replace(
    _LLAMA,
    architecture="qwen3",
    width=96,
    heads=6,
    kv_heads=2,
    head_dim=128,
    tied=True,
    keys={"rope.freq_base": 1000000.0},
    gains={**_OF_HEADS, "token_embd": 0.25},
)
_GEMMA3 = replace(
    _LLAMA,
    architecture="gemma3",
    norm_eps=0.01,
    layers=7,
    width=96,
    heads=4,
    head_dim=256,
    tied=True,
    keys=_GEMMA3_KEYS,
    gains={**_OF_HEADS, "token_embd": 0.25},
)
_PHI3 = replace(
    _LLAMA,
    architecture="phi3",
    width=288,
    head_dim=96,
    keys={"rope.dimension_count": 96},
    gains={"attn_qkv": 1.3},
)
_SMOLLM3 = replace(
    _LLAMA,
    architecture="smollm3",
    layers=6,
    width=384,
    ffn=160,
    head_dim=128,
    tied=True,
    keys={"rope.dimension_count": 128, "rope.freq_base": 50000.0},
    gains={"token_embd": 0.25},
)
_GRANITE = replace(
    _LLAMA,
    architecture="granite",
    layers=4,
    keys={
        "rope.dimension_count": 64,
        "attention.scale": 0.078125,
        "embedding_scale": 12.0,
        "residual_scale": 0.375,
        "logit_scale": 3.0,
    },
    gains={"token_embd": 0.0625, "output": 7.5, "attn_q": 1.6, "attn_k": 1.6},
)
_OLMO2 = replace(
    _LLAMA,
    architecture="olmo2",
    width=384,
    ffn=160,
    head_dim=128,
    keys={"rope.freq_base": 500000.0},
    gains=_OF_HEADS,
)

TINY = {
    "llama": _LLAMA,
    "llama-tied-biases": replace(
        _LLAMA,
        tied=True,
        biases=("attn_q", "attn_k", "attn_v", "attn_output"),
        gains={"token_embd": 0.25},
    ),
    "llama-3": replace(
        _LLAMA,
        width=384,
        head_dim=128,
        keys={"rope.dimension_count": 128, "rope.freq_base": 500000.0},
        vectors={"rope_freqs.weight": _llama3(64, 500000.0)},
    ),
    "llama-linear": replace(
        _LLAMA,
        keys={
            "rope.dimension_count": 64,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 4.0,
        },
    ),
    "llama-yarn": replace(
        _LLAMA,
        keys={"rope.dimension_count": 64, **_YARN, "rope.scaling.attn_factor": 1.25},
    ),
    "mistral3": _MISTRAL3,
    "mistral3-attention-factor": replace(
        _MISTRAL3,
        keys={
            **_MISTRAL3_KEYS,
            "rope.scaling.yarn_log_multiplier": 0.0,
            "rope.scaling.yarn_attn_factor": 1.5,
        },
    ),
    "mistral3-plain": replace(_MISTRAL3, tied=True, gains={"token_embd": 0.25}, keys={}),
    "qwen2": _QWEN2,
    "qwen3": _QWEN3,
    # llama.cpp heeds these turns in mistral3 only.
    "qwen3-yarn": replace(
        _QWEN3, keys={**_QWEN3.keys, **_YARN, "rope.scaling.yarn_beta_fast": 8.0}
    ),
    "gemma3": _GEMMA3,
    "gemma3-linear": replace(
        _GEMMA3,
        layers=5,
        head_dim=64,
        kv_heads=2,
        keys={
            **_GEMMA3_KEYS,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
            "rope.freq_base_swa": 20000.0,
            "attention.sliding_window_pattern": 3,
        },
    ),
    "gemma3-27b": replace(_GEMMA3, layers=62, heads=3, head_dim=64),
    "gemma3-full": replace(_GEMMA3, layers=3, head_dim=64, keys={"rope.freq_base": 1000000.0}),
    "gemma3-capped": replace(_GEMMA3, layers=2, head_dim=64, keys={"final_logit_softcapping": 3.0}),
    "phi3": replace(_PHI3, width=192, head_dim=64, keys={"rope.dimension_count": 48}),
    "phi3-short": replace(
        _PHI3,
        vectors=_PHI3_FACTORS,
        keys={
            "rope.dimension_count": 96,
            "rope.scaling.original_context_length": WINDOW,
            "rope.scaling.attn_factor": 1.25,
        },
    ),
    "phi3-long": replace(
        _PHI3,
        width=384,
        head_dim=128,
        vectors=_PHI3_FACTORS,
        tied=True,
        keys={
            "rope.dimension_count": 96,
            "rope.scaling.original_context_length": 128,
            "rope.scaling.attn_factor": 1.25,
        },
        gains={"attn_qkv": 1.3, "token_embd": 0.25},
    ),
    "smollm3": _SMOLLM3,
    "granite": _GRANITE,
    "granite-unturned": replace(
        _GRANITE,
        keys={
            "rope.dimension_count": 64,
            "logit_scale": 1.5,
            "rope.scaling.finetuned": False,
        },
        gains={"output": 3.75},
    ),
    "olmo2": _OLMO2,
    # OLMo 3, whose window layers are not scaled; llama.cpp does not heed a base of theirs.
    "olmo2-window": replace(
        _OLMO2,
        layers=5,
        keys={
            "rope.freq_base": 500000.0,
            **_YARN,
            "attention.sliding_window": 37,
            "attention.sliding_window_pattern": (True, True, False, True, False),
            "rope.freq_base_swa": 20000.0,
        },
    ),
}
