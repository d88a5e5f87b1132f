"""One of the ranks of `test_ranks`: `python -m tests.kvcache.mlx_lm.rank MODEL WAY` prints JSON.

WAY: "alone", or how the model is spread over the ranks, by MLX_RANK and MLX_HOSTFILE.
"""

import json
import sys
from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx_lm.models import llama, ministral3, qwen2

from kvcache import CacheConfig, HotDtype, make_prompt_cache, mlx_lm
from tests.kvcache.tiny_llama import generate

LAYERS, HKV, DIM, VOCABULARY = 4, 6, 16, 101
PROMPT = [(7 * i + 3) % VOCABULARY for i in range(90)]
LOSSLESS = CacheConfig(
    keys="f16", values="f16", hot_dtype=HotDtype.F32, max_tokens=80, hot=16, block=16
)
_SIZES: dict[str, Any] = {
    "intermediate_size": 66,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": HKV,
    "head_dim": DIM,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2**17,
}


def make(name: str) -> Any:
    """A model whose heads two and three ranks can share, its float32 weights from a fixed seed."""
    mx.random.seed(13)
    model = {"llama": _llama, "qwen2": _qwen2, "ministral3": _ministral3}[name]()
    mx.eval(model.parameters())
    return model


def _llama() -> Any:
    heads = {"num_attention_heads": HKV, "hidden_size": HKV * DIM}
    return llama.Model(llama.ModelArgs(model_type="llama", **_SIZES, **heads))


def _qwen2() -> Any:
    sizes = {name: value for name, value in _SIZES.items() if name != "head_dim"}
    heads = {"num_attention_heads": 2 * HKV, "hidden_size": 2 * HKV * DIM}
    return qwen2.Model(qwen2.ModelArgs(model_type="qwen2", **sizes, **heads))


def _ministral3() -> Any:
    """Of which some layers see a window only."""
    args = ministral3.ModelArgs(
        model_type="ministral3",
        num_attention_heads=2 * HKV,
        hidden_size=2 * HKV * DIM,
        layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2),
        sliding_window=23,
        rope_parameters={
            "rope_theta": 1000.0,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 64,
            "rope_type": "default",
        },
        **_SIZES,
    )
    return ministral3.Model(args)


def main() -> None:
    """Generate by both ways of attention; print ids and what a budget holds."""
    name, way = sys.argv[1:]
    model = make(name)
    if way != "alone":
        group = mx.distributed.init(strict=True, backend="ring")
        if way == "tensor":
            model.shard(group)
        else:
            model.model.pipeline(group)
    found: dict[str, Any] = {"layers": len(model.layers), "ids": []}
    for installs in (False, True):
        if installs:
            mlx_lm.install()
        # Prompts in steps, of which a pipeline's ranks look at the caches alone.
        caches = make_prompt_cache(model, LOSSLESS)
        found["ids"].append(generate(model, PROMPT, caches, 30, step=17)[0])
        found["evicted"] = max(cache.stats().evicted for cache in caches)
        found["kv_heads"] = caches[0].kv_heads
        assert caches[0].keys().shape[1] == caches[0].kv_heads
    bounded = make_prompt_cache(model, replace(LOSSLESS, max_tokens=None, budget=2**20))
    found["tokens"] = max(cache.plan.sizes.max_tokens for cache in bounded)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
