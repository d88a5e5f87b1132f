"""A random mlx-lm Llama, small enough for the real generation loop in a test."""

from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.models import llama

LAYERS, HKV, HQ, DIM, VOCABULARY = 3, 2, 6, 16, 101


def make_model() -> Any:
    """Float32 weights from a fixed seed."""
    mx.random.seed(11)
    args = llama.ModelArgs(
        model_type="llama",
        hidden_size=HQ * DIM,
        num_hidden_layers=LAYERS,
        intermediate_size=67,
        num_attention_heads=HQ,
        num_key_value_heads=HKV,
        head_dim=DIM,
        rms_norm_eps=1e-5,
        vocab_size=VOCABULARY,
        max_position_embeddings=2**17,
    )
    model = llama.Model(args)
    mx.eval(model.parameters())
    return model


def generate(
    model: Any, prompt: list[int], cache: list[Any], count: int, *, step: int = 2048
) -> tuple[list[int], list[mx.array]]:
    """`count` greedy tokens and their log-probabilities, by mlx-lm's own loop."""
    tokens, logprobs = [], []
    steps = generate_step(
        mx.array(prompt), model, prompt_cache=cache, max_tokens=count, prefill_step_size=step
    )
    for token, logprob in steps:
        tokens.append(int(token))
        logprobs.append(logprob)
    return tokens, logprobs
